"""Folding IOPub messages into outputs: pure, over messages as kernels send them, and as hostile ones might."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from kernel_server.kernels.outputs import (
    MAX_OUTPUTS,
    MAX_RICH_BYTES,
    MAX_TEXT_BYTES,
    MAX_TYPES,
    PIECE_BYTES,
    Display,
    Error,
    Outputs,
    Stream,
    error_of,
)
from kernel_server.kernels.previews import MAX_PREVIEW_BASE64, Preview


def fold(*messages: tuple[str, dict[str, Any]]) -> Outputs:
    outputs = Outputs()
    for msg_type, content in messages:
        outputs.fold(msg_type, content)
    return outputs


def stream(text: Any, name: Any = "stdout") -> tuple[str, dict[str, Any]]:
    return "stream", {"name": name, "text": text}


def display(data: Any, display_id: str = "", msg_type: str = "display_data") -> tuple[str, dict[str, Any]]:
    return msg_type, {"data": data, "metadata": {}, "transient": {"display_id": display_id}}


def pictured(note: Any, data: Any = None, msg_type: str = "display_data") -> tuple[str, dict[str, Any]]:
    """A display as container/kernel_host/pictures.py sends it, or one that claims to be."""
    content = {"data": data or {}, "metadata": {"own": 1, "kernel_server": note}, "transient": {"display_id": "a"}}
    return msg_type, content


def previewed(data: str) -> dict[str, Any]:
    return {"preview": {"mime_type": "image/png", "data": data}, "original": "images/a.png", "width": 9, "height": 8}


def kept_bytes(outputs: Outputs) -> int:
    """What the outputs hold in memory, roughly."""
    total = 0
    for item in outputs.items:
        match item:
            case Stream():
                total += len(item.head) + len(item.tail)
            case Display():
                total += sum(len(str(value)) for value in (*item.data.values(), *item.metadata.values()))
                total += len(item.preview.data) if item.preview else 0
            case Error():
                total += len(item.evalue) + sum(map(len, item.traceback))
    return total


def test_neighbouring_text_of_one_stream_is_joined() -> None:
    """Jupyter messaging, stream: output comes in pieces; a frontend shows it as one."""
    outputs = fold(stream("a"), stream("b\n"), stream("e", "stderr"), stream("c"))
    assert [(item.name, item.text) for item in outputs.items if isinstance(item, Stream)] == [
        ("stdout", "ab\n"),
        ("stderr", "e"),
        ("stdout", "c"),
    ]


def test_what_is_taken_stays_and_the_rest_begins_anew() -> None:
    """Ours: nothing that comes later changes what was handed out, and what was there before takes no room."""
    first = [stream("a" * (MAX_TEXT_BYTES + 1)), display({"image/png": "b" * (MAX_RICH_BYTES - 1000)})]
    dropped = display({"image/png": "c" * 1000})
    clear = ("clear_output", {"wait": True})
    outputs = fold(*first, dropped, clear)
    taken = outputs.take()
    assert outputs == Outputs()
    for message in (*first, clear, stream("d")):
        outputs.fold(*message)
    assert (taken.items, taken.dropped) == (fold(*first).items, 1)
    assert (outputs.items, outputs.dropped) == ([Stream("stdout", "d")], 0)


def test_outputs_keep_their_order() -> None:
    """Issue 2: text, images and errors in order."""
    outputs = fold(
        stream("1"),
        display({"image/png": "AAAA"}),
        stream("2"),
        ("execute_result", {"data": {"text/plain": "3"}, "metadata": {}, "execution_count": 7}),
        ("error", {"ename": "E", "evalue": "v", "traceback": ["t"]}),
    )
    assert outputs.items == [
        Stream("stdout", "1"),
        Display({"image/png": "AAAA"}, {}),
        Stream("stdout", "2"),
        Display({"text/plain": "3"}, {}, 7),
        Error("E", "v", ["t"]),
    ]
    assert outputs.error == Error("E", "v", ["t"])
    assert outputs.dropped == 0


def test_flood_of_text_keeps_head_and_tail_and_counts_the_rest() -> None:
    """DESIGN, results: head and tail. The figures add up."""
    outputs = fold(*(stream(f"{number:09}\n") for number in range(1_000_000)))
    (item,) = outputs.items
    assert isinstance(item, Stream)
    assert item.head.startswith("000000000\n")
    assert item.tail.endswith("000999999\n")
    assert len(item.head) + len(item.tail) + item.dropped == 10_000_000
    assert len(item.head) + len(item.tail) <= MAX_TEXT_BYTES * 5 // 4 + 2 * PIECE_BYTES
    assert "left out" in item.text


def test_one_huge_piece_is_cut_like_many_small_ones() -> None:
    """Ours: print('a' * 10**8) is one message."""
    outputs = fold(stream("a" * 20_000_000 + "end"))
    assert kept_bytes(outputs) <= MAX_TEXT_BYTES * 5 // 4
    assert isinstance(outputs.items[0], Stream)
    assert outputs.items[0].text.endswith("end")


HOSTILE_FLOODS = {
    "two streams in turn": [stream("x" * 1_000_000, ("stdout", "stderr")[n % 2]) for n in range(200)],
    "streams between displays": [m for _ in range(100) for m in (stream("x" * 1_000_000), display({"text/plain": ""}))],
    "displays": [display({"image/png": "A" * 1_000_000})] * 200,
    "display metadata": [("display_data", {"data": {}, "metadata": {"a": "A" * 1_000_000}})] * 200,
    "previews": [pictured(previewed("A" * MAX_PREVIEW_BASE64))] * 200,
    "errors": [("error", {"ename": "E", "evalue": "x" * 1_000_000, "traceback": ["t" * 1_000_000]})] * 200,
    "many lines of traceback": [("error", {"ename": "E", "evalue": "", "traceback": ["t" * 1000] * 100_000})],
    "updates that grow": [
        *(display({"text/plain": "small"}, str(n)) for n in range(200)),
        *(display({"text/plain": "x" * 1_000_000}, str(n), "update_display_data") for n in range(200)),
    ],
}


@pytest.mark.parametrize("messages", HOSTILE_FLOODS.values(), ids=HOSTILE_FLOODS.keys())
def test_what_is_kept_of_a_hostile_cell_is_bounded(messages: list[tuple[str, dict[str, Any]]]) -> None:
    """facts/security.md H8: kernels are hostile; 32 sessions must fit. 200 messages of 1 MB each and more."""
    outputs = fold(*messages)
    assert kept_bytes(outputs) <= 2 * MAX_TEXT_BYTES + MAX_RICH_BYTES


def test_too_many_outputs_are_counted() -> None:
    """Ours: the result says how many are missing."""
    outputs = fold(*[display({"text/plain": "x"})] * (MAX_OUTPUTS + 5))
    assert len(outputs.items) == MAX_OUTPUTS
    assert outputs.dropped == 5


def test_error_is_kept_after_too_many_outputs() -> None:
    """Ours: how the cell ended matters most."""
    outputs = fold(*[display({"text/plain": "x"})] * (MAX_OUTPUTS + 5), ("error", {"ename": "Late", "evalue": ""}))
    assert outputs.error == Error("Late", "", [])


def test_clear_output_takes_effect_at_once_or_with_the_next_output() -> None:
    """Jupyter messaging, clear_output: `wait` delays it until there is something new, against flicker."""
    assert fold(stream("a"), ("clear_output", {"wait": False})).items == []
    waiting = fold(stream("a"), ("clear_output", {"wait": True}))
    assert waiting.items == [Stream("stdout", "a")]
    waiting.fold(*stream("b"))
    waiting.fold(*stream("c"))
    assert waiting.items == [Stream("stdout", "bc")]


@pytest.mark.parametrize("wait", [True, False])
def test_animation_may_go_on_for_ever(wait: bool) -> None:
    """Ours: what is cleared makes room; a live plot of 100 frames of 1 MB still shows its last one."""
    outputs = Outputs()
    for number in range(100):
        outputs.fold("clear_output", {"wait": wait})
        outputs.fold(*display({"image/png": str(number).rjust(1_000_000, "A")}))
        outputs.fold(*stream(f"frame {number}".ljust(100_000)))
    shown, text = outputs.items
    assert isinstance(shown, Display)
    assert shown.data["image/png"].endswith("A99")
    assert isinstance(text, Stream)
    assert text.text.startswith("frame 99")
    assert outputs.dropped == 0


def test_update_replaces_every_display_of_that_id() -> None:
    """Jupyter messaging, update_display_data; an update itself adds no output."""
    outputs = fold(
        display({"text/plain": "1"}, "a"),
        display({"text/plain": "1"}, "b"),
        display({"text/plain": "1"}, "a"),
        display({"text/plain": "2"}, "a", "update_display_data"),
        display({"text/plain": "3"}, "", "update_display_data"),
    )
    assert [item.data["text/plain"] for item in outputs.items if isinstance(item, Display)] == ["2", "1", "2"]


def test_preview_is_kept_apart_from_what_a_notebook_gets() -> None:
    """Issue 3: the notebook has the original, and no preview in its metadata."""
    outputs = fold(pictured(previewed("small"), {"image/png": "large"}))
    preview = Preview("image/png", "small", "images/a.png", 9, 8)
    assert outputs.items == [Display({"image/png": "large"}, {"own": 1}, display_id="a", preview=preview)]


def test_update_replaces_the_preview_as_well() -> None:
    """Ours: else the result would show the first state for ever; also if there is none any more."""
    outputs = fold(pictured(previewed("1")), pictured(previewed("2"), None, "update_display_data"))
    assert isinstance(outputs.items[0], Display)
    assert outputs.items[0].preview == Preview("image/png", "2", "images/a.png", 9, 8)
    outputs.fold(*display({"image/png": "3"}, "a", "update_display_data"))
    assert outputs.items[0].preview is None


def test_picture_that_does_not_fit_is_kept_as_its_preview() -> None:
    """Ours: a smaller picture in the notebook is better than none; the text beside it stays."""
    large = {"image/png": "x" * (MAX_RICH_BYTES + 1), "text/plain": "text"}
    outputs = fold(pictured(previewed("small"), large))
    assert outputs.dropped == 0
    assert isinstance(outputs.items[0], Display)
    assert outputs.items[0].data == {"image/png": "small", "text/plain": "text"}


@pytest.mark.parametrize(
    ("note", "preview"),
    [
        (None, None),
        ("preview", None),
        ({}, Preview()),
        ({"preview": "x", "original": None, "width": "9", "height": True}, Preview()),
        ({"preview": {"mime_type": "image/svg+xml", "data": "x"}}, Preview()),
        ({"preview": {"mime_type": ["image/png"], "data": "x"}}, Preview()),
        ({"preview": {"mime_type": "image/png", "data": {}}, "width": 7, "height": -1}, Preview(width=7)),
        (previewed("x" * (MAX_PREVIEW_BASE64 + 1)), Preview("", "", "images/a.png", 9, 8)),
        ({"original": "/etc/passwd"}, Preview()),
        ({"original": "images/../a\n[a line]"}, Preview()),
        ({"original": "images/" + "a" * 1000, "width": 1 << 40}, Preview()),
    ],
)
def test_preview_of_wrong_types_is_none(note: object, preview: Preview | None) -> None:
    """facts/security.md: every field may be anything; what it claims is text that a model reads."""
    (item,) = fold(pictured(note)).items
    assert isinstance(item, Display)
    assert item.preview == preview
    assert item.metadata == {"own": 1}


@pytest.mark.parametrize(
    ("msg_type", "content"),
    [
        ("stream", {}),
        ("stream", {"name": ["stdout"], "text": {"a": 1}}),
        ("stream", {"name": None, "text": None}),
        ("display_data", {}),
        ("display_data", {"data": ["text/plain"], "metadata": "x", "transient": []}),
        ("display_data", {"data": {"text/plain": 5}, "metadata": None, "transient": {"display_id": {}}}),
        ("execute_result", {"data": None, "execution_count": "7"}),
        ("update_display_data", {"data": 1, "transient": {"display_id": None}}),
        ("error", {}),
        ("error", {"ename": 5, "evalue": None, "traceback": "text"}),
        ("error", {"traceback": [1, None]}),
        ("clear_output", {"wait": "yes"}),
        ("comm_open", {"data": {}}),
        ("no such type", {}),
    ],
)
def test_content_of_wrong_types_does_no_harm(msg_type: str, content: dict[str, Any]) -> None:
    """facts/security.md: every field may be anything; the fields of the result have the types they say."""
    outputs = fold((msg_type, content), stream("after"))
    for item in outputs.items:
        match item:
            case Stream():
                assert item.name in ("stdout", "stderr")
                assert isinstance(item.text, str)
            case Display():
                assert isinstance(item.data, dict)
                assert isinstance(item.metadata, dict)
                assert item.execution_count is None or isinstance(item.execution_count, int)
                assert isinstance(item.display_id, str)
            case Error():
                assert isinstance(item.evalue, str)
                assert all(isinstance(line, str) for line in item.traceback)
    last = outputs.items[-1]
    assert isinstance(last, Stream)
    assert last.text.endswith("after")


@pytest.mark.parametrize("count", [-1, True, 1 << 70, "3", None, 1.5])
def test_execution_count_is_a_count_or_nothing(count: object) -> None:
    """nbformat 4.5: an integer of 0 or more, or null; anything else makes the whole notebook invalid."""
    (item,) = fold(("execute_result", {"data": {}, "metadata": {}, "execution_count": count})).items
    assert isinstance(item, Display)
    assert item.execution_count is None


def test_error_of_a_reply_without_traceback() -> None:
    """Jupyter messaging, execute_reply with status error: the fields may be missing."""
    assert error_of({"ename": "KeyboardInterrupt"}) == Error("KeyboardInterrupt", "", [])


def test_bundle_of_very_many_types_is_cut() -> None:
    """Ours: with two million of them one message held up the server for seven seconds."""
    (item,) = fold(("display_data", {"data": {f"x/{number}": "" for number in range(MAX_TYPES + 1)}})).items
    assert isinstance(item, Display)
    assert list(item.data) == [f"x/{number}" for number in range(MAX_TYPES)]


def test_size_of_a_display_is_that_of_what_it_shows_now() -> None:
    """Ours: it is measured once; an update of 2000 displays with the same id took more than a second."""
    first = {"data": {"text/plain": "x" * 10}, "transient": {"display_id": "a"}}
    second = {**first, "data": {"text/plain": "x" * 1000}}
    (item,) = fold(("display_data", first), ("update_display_data", second)).items
    assert isinstance(item, Display)
    assert item.size == Display(second["data"], {}).size
    item.preview = Preview("image/png", "x" * 20)
    item.reduce()
    assert item.size == Display(item.data, {}, preview=item.preview).size


@pytest.mark.parametrize(("msg_type", "dropped"), [("stream", 1), ("error", 1), ("clear_output", 0), ("comm_msg", 0)])
def test_output_that_was_too_much_to_be_read_counts_as_dropped(msg_type: str, dropped: int) -> None:
    """Ours: the result tells of it; what is no output is none that is missing."""
    outputs = fold(stream("before"))
    outputs.fold(msg_type, {}, refused=True)
    assert (outputs.items, outputs.dropped) == ([Stream("stdout", "before")], dropped)


@pytest.mark.parametrize("value", [[[]] * 1000, [{"": 0}] * 1000, {str(number): "" for number in range(1000)}])
def test_size_of_a_display_is_that_in_memory(value: Any) -> None:
    """Ours: as text these are a few KB, of which the limit of a cell would let through 500 MB of memory."""
    tracemalloc.start()
    try:
        data = json.loads(json.dumps(value))
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken * 0.9 < Display({"x": data}, {}).size < taken * 2
