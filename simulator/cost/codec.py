"""Messages and tensors that a codec makes smaller: fewer bytes, and the codec's own seconds."""

from __future__ import annotations

import numpy as np

from simulator.graph.work import Numeric
from simulator.specs.trainable_spec import Codec


def compressed(
    size: Numeric, time: Numeric, codec: Codec | None, latency: Numeric = 0.0
) -> tuple[Numeric, Numeric]:
    """Return the bytes and the seconds of a message that is coded, sent and decoded.

    Parameters
    ----------
    size : number or array
        Bytes before coding.
    time : number or array
        Seconds of the message as it is, ``latency`` among them.
    codec : Codec, optional
        Of the message; none leaves it alone.
    latency : number or array
        Seconds that no codec shortens.

    Returns
    -------
    tuple
        Bytes on the link [B], and seconds from the first byte coded to the last one decoded [s].

    Notes
    -----
    Stages of a, b and c seconds that n equal chunks pass one after the other take (a + b + c)/n + (n - 1)/n·max(a, b, c):
    the sum for one chunk, the slowest for many. The codec is a ceiling: with throughput X no link gains more than X.

    Examples
    --------
    >>> codec = Codec(ratio=4.0, encode=10e9, decode=10e9)
    >>> compressed(10e9, 10.0, codec)
    (2500000000.0, 4.5)
    """
    if codec is None:
        return size, time
    link = (time - latency) / codec.ratio
    coded, decoded = size / codec.encode, size / codec.decode
    slowest: Numeric = np.maximum(np.maximum(coded, decoded), link)
    slowest = float(slowest) if np.ndim(slowest) == 0 else slowest
    return size / codec.ratio, latency + _chunked(link + coded + decoded, slowest, codec.chunks)


def _chunked(total: Numeric, slowest: Numeric, chunks: int) -> Numeric:
    return total / chunks + (chunks - 1) / chunks * slowest


def codec_times(size: Numeric, codec: Codec) -> tuple[Numeric, Numeric]:
    """Return the seconds in which a tensor is coded, and in which it is decoded [s]; its bytes shrink by the ratio."""
    return size / codec.encode, size / codec.decode
