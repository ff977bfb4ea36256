import pytest

from isoflop.budget import Budget, parse_budget
from isoflop.errors import UserError


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("90s", "seconds", 90),
        ("3m", "seconds", 180),
        ("2h", "seconds", 7200),
        ("1.5h", "seconds", 5400),
        ("1e15", "flops", 1e15),
        ("2e12flop", "flops", 2e12),
        ("5e6tok", "tokens", 5e6),
        ("20Mtok", "tokens", 20e6),
        ("2000steps", "steps", 2000),
        ("$20@2.5/h", "seconds", 8 * 3600),
    ],
)
def test_each_form_is_read(text, kind, amount):
    assert parse_budget(text) == Budget(kind, amount)


def test_a_leading_plus_is_marked():
    assert parse_budget("+1h") == Budget("seconds", 3600, more=True)


@pytest.mark.parametrize(
    "text", ["", "soon", "3 bananas", "-3m", "0s", "nan", "1e999", "0.1steps", "3M", "$5@0/h", "++1h"]
)
def test_nonsense_is_refused_with_the_forms_that_work(text):
    with pytest.raises(UserError, match="90s, 3m, 2h"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["90s", "3m", "2h", "1e+15flop", "5000000tok", "2000steps", "+10m"])
def test_a_budget_reads_back_as_written(text):
    assert str(parse_budget(text)) == text
