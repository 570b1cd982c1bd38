"""What a hire costs. Called by Halyard when a booking is made and when a boat comes back.

Jonas, with Callum's rules of March 2025. Prices come from halyard.toml; the rules live here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

GRACE = timedelta(minutes=12)  # Hamish: "nobody should pay for looking at a seal"
DAY_AFTER_HOURS = 4  # from here on the day price is cheaper, so charge that
CLUB_SHARE = 0.85  # members of the Kelderwick Rowing Club pay 85 per cent, on weekdays only
LATE_FEE = 15  # pounds, when the launch had to go out and look


@dataclass(frozen=True)
class Rates:
    """Pounds for one kind of boat."""

    hour: float
    day: float


def hire_price(rates: Rates, out: datetime, back: datetime, *, club: bool = False, searched: bool = False) -> float:
    """Price in pounds, tax included. Begun half hours count in full after the grace of twelve minutes."""
    if back < out:
        raise ValueError("the boat came back before it left; look at the clock of the tablet")
    used = max(back - out - GRACE, timedelta(minutes=30))
    halves = -(-used // timedelta(minutes=30))
    price = rates.day if halves > 2 * DAY_AFTER_HOURS else halves * rates.hour / 2
    if club and out.weekday() < 5:
        price *= CLUB_SHARE
    if searched:
        price += LATE_FEE
    return round(price, 2)


def cancel_fee(price: float, hours_before: float, *, our_weather: bool = False) -> float:
    """What we keep of a cancelled booking: nothing until 48 hours before or when we raised the flag, else half."""
    if our_weather or hours_before >= 48:
        return 0.0
    return round(price / 2, 2)
