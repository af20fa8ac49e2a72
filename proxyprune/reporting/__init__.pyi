from .html import render as render, write_report as write_report
from .read.read_result import Result as Result, read_result as read_result
