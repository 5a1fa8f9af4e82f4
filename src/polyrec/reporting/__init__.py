"""One page about one or several runs, which needs nothing beside itself."""

from polyrec.reporting.examples import Example
from polyrec.reporting.report import report_page

__all__ = ["Example", "report_page"]
