"""What `import holdfast` is enough for."""

from __future__ import annotations

import inspect

import holdfast
from holdfast import errors


def test_every_error_can_be_caught_by_its_name_in_the_package() -> None:
    named = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert named
    assert {name for name in named if getattr(holdfast, name, None) is not getattr(errors, name)} == set()
