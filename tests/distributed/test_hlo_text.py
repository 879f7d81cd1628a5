import pytest

from jaxcore.distributed.hlo_text import parse_hlo, shape_bytes, shape_dims

LOOP = """\
HloModule m

%cond (p: (s32[], f32[4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(9)
  %p = (s32[]{:T(128)}, f32[4]{0:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=DIRECTION
}

%body (q: (s32[], f32[4])) -> (s32[], f32[4]) {
  %q = (s32[], f32[4]) parameter(0)
  ROOT %t = (s32[], f32[4]) tuple(%q)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %start = s32[] constant(2)
  %copied = s32[] copy(%start)
  %init = (s32[], /*index=1*/f32[4]) tuple(%copied, %x)
  %w = (s32[], f32[4]) while(%init), condition=%cond, body=%body NOTE
  ROOT %out = f32[4] get-tuple-element(%w), index=1
}
"""


@pytest.mark.parametrize(
    ("direction", "note", "trips"),
    [
        ("LT", "", 7),
        ("LE", "", 8),
        ("GT", "", None),
        ("LT", ', backend_config={"known_trip_count":{"n":"5"}}', 5),
    ],
)
def test_trip_counts(direction, note, trips):
    module = parse_hlo(LOOP.replace("DIRECTION", direction).replace(" NOTE", note))
    loop = module.find("main", "w")
    assert loop is not None
    assert module.trip_count(loop, "main") == trips
    inside = [placed for placed in module.placed() if placed.computation == "body"]
    assert {placed.executions for placed in inside} == {trips or 1}
    assert {placed.trip_count_known for placed in inside} == {trips is not None}


def test_fused_condition():
    text = """\
HloModule m

%compare_fusion (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %lt = pred[] compare(%a, %b), direction=LT
}

%cond (p: (s32[], f32[4])) -> pred[] {
  %p = (s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %limit = s32[] constant(6)
  ROOT %f = pred[] fusion(%i, %limit), kind=kLoop, calls=%compare_fusion
}

ENTRY %main (x: (s32[], f32[4])) -> (s32[], f32[4]) {
  %x = (s32[], f32[4]) parameter(0)
  ROOT %w = (s32[], f32[4]) while(%x), condition=%cond, body=%cond
}
"""
    module = parse_hlo(text)
    loop = module.find("main", "w")
    assert module.entry == "main" and loop is not None and module.trip_count(loop, "main") == 6


def test_shapes():
    assert shape_bytes("bf16[1,256,256]{2,1,0:T(8,128)(2,1)S(1)}") == 2 * 256 * 256
    assert shape_bytes("(f32[4]{0}, /*index=1*/pred[3], u32[], token[])") == 16 + 3 + 4
    assert shape_bytes("f8e4m3fn[10]") == 10 and shape_bytes("s4[10]") == 5 and shape_bytes("c64[2]") == 16
    assert shape_dims("(f32[4,5]{1,0}, s32[])") == (4, 5) and shape_dims("f32[]") == ()
