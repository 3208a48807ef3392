from autotl import hookimpl


@hookimpl
def register_augmentations(register):
    register("grey-square", GreySquare, summary="A grey square somewhere (DeVries and Taylor 2017, arXiv 1708.04552)")


class GreySquare:
    def suggest(self, trial, context):
        return {"side": trial.suggest_float("grey-square.side", 0.1, 0.6)}

    def build(self, params):
        import torch

        def paint(images, draw):
            size = images.shape[-1]
            places = torch.arange(size, device=images.device)
            centre = draw(2) * size  # [N, 2], separate for each image
            near = (places - centre[:, :, None]).abs() < params["side"] * size / 2  # [N, 2, size]
            square = near[:, 0, :, None] & near[:, 1, None, :]
            return torch.where(square[:, None], 128, images)

        return paint
