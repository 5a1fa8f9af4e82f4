"""A server that recommends, keeps what it is sent, and survives being killed: `polyrec serve`."""
