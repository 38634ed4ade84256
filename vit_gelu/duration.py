"""Seconds as a person reads them."""


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as far as there are any.

    >>> clock(9.4), clock(200), clock(7384)
    ('9 s', '3:20', '2:03:04')
    """
    seconds = round(seconds)
    minutes, s = divmod(seconds, 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}" if minutes else f"{s} s"
