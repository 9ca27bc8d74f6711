"""The largest batch whose step fits: a search that measures as few batches as it can."""

from collections.abc import Callable

LARGEST_BATCH = 2**16  # nothing above it is tried
_MARGIN = 0.01  # of the room, left by a largest batch that is interpolated
_NEAR = 0.05  # of the room: from a peak that is measured so near, the secant leads to the answer
_MOST_TRIALS = 6


def largest_batch(
    peak_at: Callable[[int], int],  # batch -> bytes; takes seconds where it compiles
    first: tuple[int, int],  # a batch and its peak
    granule: int,  # the batch must be a multiple of it, as `first` is
    room: int,  # bytes
    slope: float,  # a guess of the bytes per example
) -> tuple[int, float]:
    """`(batch, slope)`: the largest batch whose peak is within `room`, and bytes per example.

    The batch is at most `LARGEST_BATCH`, and 0 if none fits. The peak is nearly affine in the
    batch. The slope that is given leads to a second batch, the secant through the first and it to
    the next, until a peak is within 5 % of `room`: from there the secant gives the batch that needs
    99 % of it, or the largest that was measured to fit.
    """
    peaks = dict([first])
    beyond = LARGEST_BATCH // granule * granule + granule
    for _ in range(_MOST_TRIALS):
        # What is known: the answer lies from `fitting` on and below `too_large`.
        fitting = max((b for b, peak in peaks.items() if peak <= room), default=0)
        too_large = min((b for b, peak in peaks.items() if peak > room), default=beyond)

        # Where the line from the nearest peak meets the room, but for the margin.
        nearest = min(peaks, key=lambda batch: abs(peaks[batch] - room))
        left = (1 - _MARGIN) * room - peaks[nearest]
        guess = int(nearest + left / max(slope, 1.0)) // granule * granule
        guess = max(min(guess, too_large - granule), fitting)

        nothing_fits = too_large == granule
        already_measured = 0 < guess == fitting
        interpolated = len(peaks) > 1 and abs(peaks[nearest] - room) <= _NEAR * room
        if nothing_fits or already_measured or interpolated:
            return guess, slope

        guess = max(guess, granule)
        peaks[guess] = peak_at(guess)
        # Over all of the distance to the first, since small steps vary.
        slope = (peaks[guess] - first[1]) / (guess - first[0])
    return max((b for b, peak in peaks.items() if peak <= room), default=0), slope
