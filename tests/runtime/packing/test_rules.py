"""The formats that settings ask for: "auto" leaves the choice between those that keep every bit."""

from penstock.runtime.config.settings import Weights
from penstock.runtime.packing.arrange.formats import Rules
from penstock.runtime.packing.rules import named_rules


def test_a_format_that_is_named_is_taken() -> None:
    assert named_rules(Weights(format="int8", experts="int4")) == (Rules("int8", experts="int4"),)


def test_auto_is_one_of_the_exact_formats_for_all_that_has_no_other() -> None:
    assert named_rules(Weights()) == (Rules("as-is"), Rules("lossless"))
    both = named_rules(Weights(experts="int4"))
    assert [str(rules) for rules in both] == ["as-is,experts=int4-32", "lossless,experts=int4-32"]
