from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from convlens_server.tracing import is_sampled

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
hexadecimal = st.sampled_from("0123456789abcdefg0")


@given(
    st.text(hexadecimal, min_size=2, max_size=2),
    st.text(hexadecimal, min_size=32, max_size=32) | st.just("0" * 32),
    st.text(hexadecimal, min_size=16, max_size=16) | st.just("0" * 16),
    st.text(hexadecimal, min_size=2, max_size=2),
)
@example("00", TRACE, SPAN, "01")
@example("cc", TRACE, SPAN, "03")
@example("ff", TRACE, SPAN, "01")
def test_a_traceparent_is_read_as_opentelemetry_reads_it(version, trace, span, flags):
    text = f"{version}-{trace}-{span}-{flags}"
    context = get_current_span(TraceContextTextMapPropagator().extract({"traceparent": text})).get_span_context()
    assert is_sampled(text) == (context.trace_flags.sampled if context.is_valid else None)


@given(st.text(max_size=80))
@example("")
@example(f"00-{TRACE}-{SPAN}")
@example(f"00-{TRACE.upper()}-{SPAN}-01")
def test_what_is_none_is_none(text):
    assert is_sampled(text) is None


@pytest.mark.parametrize("more", ["", "-what comes"])
def test_later_versions_may_say_more(more):
    assert is_sampled(f"01-{TRACE}-{SPAN}-01{more}")
