"""Bytes that begin right and go wrong anywhere: every one of them is decoded or refused, in little memory."""

from __future__ import annotations

from codec_values import in_a_small_process


def test_mutated_bytes_are_decoded_or_refused():
    in_a_small_process(
        """
        import random
        from test_codec_msgpack import DEEP, HOSTILE, ROUNDS, CodecError, Decimal, chain, dt, ext, framed, nested, np

        values = [
            {"a": (1, {2, 3}, [b"x", bytearray(b"y")])}, {1: {(2, 3): frozenset([4])}}, np.arange(6).reshape(2, 3),
            {"x": np.arange(10000), "y": [np.zeros(9000)]}, dt.datetime.now(dt.UTC), Decimal("1.5"), 2**70, "\\ud800",
            np.float32(1), np.zeros(2, dtype=[("a", "i4"), ("b", "f8", (2,))]), slice(1, 2), range(4),
        ]
        seeds = [chain.encode(value, "k")[4:-4] for value in values]
        seeds += [*HOSTILE.values(), *(nested(*how) for how in DEEP.values())]
        seeds = [seed for seed in seeds if len(seed) < 200_000]
        heads = b"\\x00\\x7f\\x80\\x90\\xc1\\xc4\\xc6\\xc7\\xc9\\xcb\\xd3\\xd4\\xd8\\xdb\\xdc\\xdd\\xde\\xdf\\xff"
        choose = random.Random(1)
        refused = 0
        for _ in range(10_000 * ROUNDS):
            data = bytearray(choose.choice(seeds))
            for _ in range(choose.randint(1, 6)):
                at, how = choose.randrange(min(len(data), 400) or 1), choose.random()
                if how < 0.5:
                    data[at : at + 1] = choose.choices(heads, k=choose.randint(1, 3))
                elif how < 0.7:
                    data[at : at + 1] = bytes([choose.randrange(256)])
                elif how < 0.8:
                    del data[at : at + choose.randint(1, 8)]
                elif how < 0.9:
                    data[at:at] = b"\\xff" * 4
                else:
                    data = bytearray(ext(choose.randint(1, 21), bytes(data[:5000])))
            try:
                chain.decode(framed(bytes(data)), "k")
            except CodecError:
                refused += 1
        assert refused > 1000 * ROUNDS
        """
    )
