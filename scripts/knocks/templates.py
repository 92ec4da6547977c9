"""Chat templates that do what they should not: endless, huge, curious, broken."""

from __future__ import annotations

from random import Random

from knocks.mutations import damaged_bytes

HOSTILE = (
    "{% for a in range(10**9) %}{% for b in range(10**9) %}{{ a }}{% endfor %}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{% set x = 'ab' %}{% for i in range(60) %}{% set x = x ~ x %}{% endfor %}{{ x }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{{ raise_exception('no') }}",
    "{{ undefined.attribute.more }}",
    "{{ messages[7].content }}",
    "{% for m in messages %}{{ m.content",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{{ '%999999999d' | format(1) }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ 10 ** 10 ** 8 }}",
    "{{ messages | tojson(indent=10**8) }}",
    "{{ strftime_now('%Y' * 100000) }}",
    "{{ [1] | list * 10**9 }}",
    "\ud800".encode("utf-16", "surrogatepass").decode("latin-1"),
    "{#" * 10000,
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "",
)


def damaged_template(data: bytes, rng: Random) -> bytes:
    """One that is hostile, or a good one with other bytes."""
    if rng.random() < 0.5:
        return rng.choice(HOSTILE).encode("utf-8", "surrogatepass")
    return damaged_bytes(data, rng)
