"""Lines and points of the pictures can be told apart."""

from leftover.commands.compare.methods import METHODS
from leftover.report.figures import series_style


def test_no_two_methods_of_a_comparison_look_alike_in_a_picture():
    styles = {repr(sorted(series_style(number).items())) for number in range(120)}
    assert len(styles) == 120 > len(METHODS)
