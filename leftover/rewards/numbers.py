"""Numbers written in a text, as floats. Pure."""

import re
from functools import cache

# Spaces that are written inside a number and nowhere else: no-break, narrow no-break, thin.
_INNER_SPACES = "\u00a0\u202f\u2009"
_LATEX_FRACTION = re.compile(r"(\d?)\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")


def find_numbers(text: str, decimal: str = ".", percent: str = "number") -> list[float]:
    """The numbers of a text in their order.

    Read are signs (`-`, U+2212, `+`; not between two operands, so that 5-3 holds 5 and 3), decimals (`1.5`, `.5`),
    exponents (`1e-5`), thousands separators (`1,234`, also `1,00,000`, and the spaces meant for it), a currency sign,
    fractions and mixed numbers of whole numbers (`3/4`, `1 1/2`, LaTeX's \\frac) and percentages. Digits that follow
    a Latin letter or digit (`H2`, `x5`) are no number. Not read: words, powers (10^3 is 10 and 3), roots.

    Args:
        decimal: `.`, or `,` for 1.234,5.
        percent: what 50% is: `number` 50.0, or `fraction` 0.5.
    """
    separators = ("." if decimal == "," else ",") + _INNER_SPACES
    found: list[float] = []
    for match in _pattern(decimal).finditer(_without_latex(text)):
        part = match.groupdict()
        factor = -1.0 if part["sign"] in ("-", "−") or part["inner_sign"] in ("-", "−") else 1.0
        if part["percent"] and percent == "fraction":
            factor /= 100
        if part["denominator"] is None:
            written = part["decimal"].translate(str.maketrans("", "", separators)).replace(decimal, ".")
            found.append(factor * float(written))
            continue
        numerator, denominator = float(part["numerator"]), float(part["denominator"])
        whole = float(part["whole"] or 0)
        if part["whole"] and numerator >= denominator:  # two numbers side by side
            found += [factor * whole, numerator / denominator]
        else:
            found.append(factor * (whole + numerator / denominator))
    return found


@cache
def _pattern(decimal: str) -> re.Pattern[str]:
    point, comma = re.escape(decimal), re.escape("." if decimal == "," else ",")
    separator = f"[{comma}{_INNER_SPACES}]"
    grouped = rf"(?:\d{{1,3}}(?:{separator}\d{{3}})+|\d{{1,2}}(?:{separator}\d{{2}}){{1,6}}{separator}\d{{3}})(?!\d)"
    return re.compile(
        r"(?:(?<![\w)\]}%])(?P<sign>[-−+]))?"
        r"\\?[$€£¥]?(?P<inner_sign>(?<=[$€£¥])[-−+])?"
        r"(?<![A-Za-z0-9])(?:"
        # A date, 1/2/2020, is no fraction.
        r"(?<!/)(?:(?P<whole>\d+) )?(?P<numerator>\d+) ?/ ?(?P<denominator>0*[1-9]\d*)(?![\d/])"
        rf"|(?P<decimal>(?:(?:{grouped}|\d+)(?:{point}\d+)?|{point}\d+)(?:[eE][-+]?\d+(?![A-Za-z0-9]))?)"
        r")(?P<percent> ?\\?%)?"
    )


def _without_latex(text: str) -> str:
    if "\\" not in text and "{,}" not in text:
        return text
    plain = text.replace("{,}", ",").replace("\\!", "")
    return _LATEX_FRACTION.sub(lambda m: f"{m[1]} {m[2]}/{m[3]}" if m[1] else f"{m[2]}/{m[3]}", plain)
