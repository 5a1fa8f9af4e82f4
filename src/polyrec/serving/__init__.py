"""A server that recommends, keeps what it is told, and survives being killed: `polyrec serve`."""
