"""Where symbolic links lead, told from their texts alone."""

from __future__ import annotations

from collections.abc import Mapping

# As many links in a row as Linux follows before it gives up (ELOOP).
_MAX_LINKS = 40


def stays_inside(link: str, links: Mapping[str, str]) -> bool:
    """Whether following a link, and every link on its way, never leaves the root.

    Followed component by component as the kernel does: `a/..` is not the root where `a` is a link itself.

    Args:
        link: A key of `links`.
        links: Every link below the root with its target, relative to the link's own directory.
    """
    at: list[str] = []
    todo = link.split("/")[::-1]
    followed = 0
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not at:
                return False
            at.pop()
            continue
        at.append(part)
        target = links.get("/".join(at))
        if target is None:
            continue
        followed += 1
        if not target or target.startswith("/"):
            return False
        if followed > _MAX_LINKS:
            return True  # a circle: the system refuses to follow it, so it leads nowhere
        at.pop()
        todo.extend(reversed(target.split("/")))
    return True
