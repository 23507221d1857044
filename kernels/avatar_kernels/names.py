"""Names of implementations."""


def check_name(name: str, known: tuple[str, ...]) -> None:
    """Refuse a name that is not in this build.

    Raises:
      NotImplementedError: there is none of that name.
    """
    if name not in known:
        raise NotImplementedError(
            f"implementation={name!r} is not in this build; use one of "
            f"{', '.join(known)}."
        )
