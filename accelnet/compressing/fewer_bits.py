"""Networks with fewer bits, as the search asks for them."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from accelnet.compressing.bits import bit_sensitivity, floats_left, quantizable, quantize, to_stored, unrounded
from accelnet.compressing.candidate import Weighing, weighing_of
from accelnet.compressing.layer_inputs import InputMoments
from accelnet.compressing.measured import Say
from accelnet.compressing.sensitivity import Sensitivity
from accelnet.compressing.speed import never_slower
from accelnet.training.run import Run

BFLOAT16 = 16


class FewerBits:
    """Networks whose weights have fewer bits, but for layers that are slower so.

    Args:
        inputs: Moments of the layers' inputs.
        batch_sizes: Batch sizes at which no layer is to be slower.
        note: Function that gets a sentence worth keeping.
    """

    def __init__(self, inputs: InputMoments, batch_sizes: Sequence[int], note: Say) -> None:
        self._inputs, self._batch_sizes, self._note = inputs, batch_sizes, note

    def stored(self, bits: int, run: Run) -> Weighing:
        """Round the weights of a trained network."""
        weighing, say = weighing_of(run), self._inputs.say
        if bits == BFLOAT16:  # a form of storage, of which the time is shown
            return quantize(*weighing, bits, say=say)
        moments, known = self._inputs.moments(weighing), quantizable(run.experiment)
        if left := floats_left(run.params, known):
            self._note(f"these weights keep floats, as no layer of few bits computes with them: {', '.join(left)}")

        def stored(leaving: Collection[str]) -> Weighing:
            chosen = {path: bits for path in known if path not in leaving}
            return quantize(*weighing, chosen, moments=moments, say=say)

        return self._fast(bits, run, stored)

    def trained(self, bits: int, run: Run) -> Weighing:
        """Store weights that were rounded while they were trained."""
        whole, weighing = replace(run, experiment=unrounded(run.experiment)), weighing_of(run)
        return self._fast(bits, whole, lambda leaving: to_stored(*weighing, embeddings=bits, leaving=leaving))

    def _fast(self, bits: int, whole: Run, stored: Callable[[Collection[str]], Weighing]) -> Weighing:
        made, kept = never_slower(whole, stored, self._batch_sizes, self._inputs.say)
        if made is None:
            self._note(f"with {bits} bits a network is smaller, and slower, whichever of its layers keep their floats")
            return stored(())
        if kept:
            told = ", ".join(f"{path} ({times:.2f} times as long)" for path, times in kept.items())
            self._note(f"layers that are slower with {bits} bits kept their floats: {told}")
        return made

    def sensitivity(self, run: Run) -> Sensitivity:
        """Return by layer how much its outputs change with 8 and with 4 bits."""
        weighing = weighing_of(run)
        return bit_sensitivity(*weighing, self._inputs.moments(weighing))
