from autotl import Input, ModelCard, WeightsSource, hookimpl, load_weights

WIDTHS = {"w16": 16, "w32": 32, "w64": 64}
SERVER = "https://example.org/plain-nets"


@hookimpl
def register_backbones(register):
    register("plain-nets", PlainNets, summary="Convolutional networks of three widths")


class PlainNets:
    def names(self):
        return [f"{name}.photos" for name in WIDTHS]

    def card(self, name):
        architecture, _, tag = name.partition(".")
        if architecture not in WIDTHS or tag not in ("", "photos"):
            raise KeyError(name)
        return ModelCard(
            input=Input(size=64, resize=64, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
            weights=WeightsSource(url=f"{SERVER}/{architecture}.safetensors"),
            source="photos",
            license="Apache-2.0",
            sizes=(96, 128),
        )

    def build(self, name, weights):
        from torch import nn

        width = WIDTHS[name.partition(".")[0]]
        stages = []
        for before, after in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1)
            stages.append(nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU()))
        network = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 100))
        if weights is not None:
            load_weights(network, weights)
        return network
