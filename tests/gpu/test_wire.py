"""Bytes on the wire, read off the text of a program."""

from pbr_jax.gpu.wire import exchanged_bytes

PROGRAM = """HloModule step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%turn (state: f32[100]) -> f32[100] {
  %state = f32[100]{0} parameter(0)
  %half = ((f32[100]{0}), (f32[25]{0})) reduce-scatter-start(%state), to_apply=%sum
  %done = f32[25]{0} reduce-scatter-done(%half)
  %both = (f32[25]{0}, f32[100]{0}) all-gather-start(%done), dimensions={0}
  ROOT %all = f32[100]{0} all-gather-done(%both)
}

%yes (x: f32[10]) -> f32[10] {
  %x = f32[10]{0} parameter(0)
  ROOT %y = f32[10]{0} all-reduce(%x), to_apply=%sum
}

%no (z: f32[10]) -> f32[10] {
  ROOT %z = f32[10]{0} parameter(0)
}

ENTRY %main (p: f32[100], q: f32[10], r: bf16[7]) -> f32[100] {
  %p = f32[100]{0} parameter(0)
  %q = f32[10]{0} parameter(1)
  %r = bf16[7]{0} parameter(2)
  %begun = (f32[10]{0}, bf16[7]{0}) all-reduce-start(%q, %r), to_apply=%sum
  %ended = (f32[10]{0}, bf16[7]{0}) all-reduce-done(%begun)
  %maybe = f32[10]{0} conditional(%q, %q), branch_computations={%yes, %no}
  ROOT %out = f32[100]{0} while(%p), body=%turn, config={"known_trip_count":{"n":"11"}}
}
"""


def test_every_turn_of_a_loop_counts_and_one_way_is_half():
    whole = 4 * 10 + 2 * 7  # an all-reduce of two arrays
    loop = 11 * (400 / 2 + 400 / 2)  # of scattered sums what goes in, of a gather what comes out
    assert exchanged_bytes(PROGRAM) == whole + 40 + loop
