"""The family `reference:`: fixed features, as used in image classification before learned ones.

`pixels` gives the pixels of a small copy of the image, `edges` the strength of edges in eight
directions on a coarse grid. They are the baseline that a pretrained backbone has to beat.
"""

from autotl import Input, ModelCard, hookimpl

INPUT = Input(size=64, resize=64, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@hookimpl
def register_backbones(register):
    register("reference", Reference, summary="Fixed features as a baseline: pixels, edges")


class Reference:
    def names(self):
        return ["pixels", "edges"]

    def card(self, name):
        if name not in self.names():
            raise KeyError(name)
        return ModelCard(input=INPUT, weights=None, source="nothing: fixed features", license="Apache-2.0")

    def build(self, name, weights):
        from autotl.builtin.reference_networks import Edges, Pixels

        return {"pixels": Pixels, "edges": Edges}[name]()
