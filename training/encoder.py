"""The VAE's encoder, set instead of trained: a block transform written into the weights of the real class.

Each latent pixel covers 8 x 8 pixels. In the first latent frame its 16 channels are the colours of the four quarters of
that block and four slopes of brightness; in every later one they are the block's colour in each of the four frames and
four slopes. All of it is linear, so residual branches are nothing, shortcuts are the identity, and one large constant
channel keeps the last normalisation from bending it. `training.latents` computes the same from pixels without the
network, which makes the encoding of a training set a matter of seconds; tests hold the two together.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan

CHANNELS = 16
# Against it colours of at most 1 in twelve channels are small: the normalisation bends them by less than 1%.
_CONSTANT = 40.0
_GAMMA = 0.2
# Where the constant is in the shallow and in the deep half of the encoder.
_SHALLOW, _DEEP = 5, 16
_LOG_VARIANCE = -6.0


@torch.no_grad()
def write(vae: AutoencoderKLWan) -> None:
    """Set every weight of `vae`'s encoder and of its `quant_conv`."""
    encoder = vae.encoder
    for module in (*encoder.modules(), vae.quant_conv):
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            module.weight.zero_()
            if module.bias is not None:
                module.bias.zero_()
    _colours(encoder.conv_in)
    first, shortcut, second = encoder.down_blocks[1], encoder.down_blocks[2].conv_shortcut, encoder.down_blocks[3]
    _halve_first(first.resample[1].weight, first.time_conv.weight)
    for channel in range(shortcut.in_channels):
        shortcut.weight[channel, channel, 0, 0, 0] = 1
    _halve_second(second.resample[1].weight, second.time_conv.weight)
    encoder.norm_out.gamma.fill_(_GAMMA)
    width = encoder.conv_out.in_channels
    linear = width**0.5 / _CONSTANT * _GAMMA / 2
    for channel in range(CHANNELS):
        encoder.conv_out.weight[channel, channel, -1, 1, 1] = 1 / linear
        vae.quant_conv.weight[channel, channel, 0, 0, 0] = 1
    vae.quant_conv.bias[CHANNELS:] = _LOG_VARIANCE


def _colours(convolution: torch.nn.Conv3d) -> None:
    """12 channels of 2 x 2 pixels to three of colour, and the constant."""
    for colour in range(3):
        convolution.weight[colour, 4 * colour : 4 * colour + 4, -1, 1, 1] = 0.25
    assert convolution.bias is not None
    convolution.bias[_SHALLOW] = _CONSTANT


def _halve_first(space: torch.Tensor, time: torch.Tensor) -> None:
    """Blocks of 4 x 4: colour (0 to 2, again 8 to 10 for the second frame of a pair), slopes of brightness (3, 4)."""
    for colour in range(3):
        space[colour, colour, :2, :2] = space[8 + colour, colour, :2, :2] = 0.25
        space[3, colour, :2, :2] = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]) / 6
        space[4, colour, :2, :2] = torch.tensor([[-1.0, -1.0], [1.0, 1.0]]) / 6
        time[colour, colour, 1], time[8 + colour, colour, 2] = 1, 1
    time[3, 3, 1:], time[4, 4, 1:] = 0.5, 0.5
    space[_SHALLOW, _SHALLOW, 0, 0] = time[_SHALLOW, _SHALLOW, 2] = 1


def _halve_second(space: torch.Tensor, time: torch.Tensor) -> None:
    """Blocks of 8 x 8: `training.latents` in channels 0 to 15; 17 to 24 are what the time convolution reads."""
    for colour in range(3):
        for quarter, (row, column) in enumerate(_QUARTERS):
            space[3 * quarter + colour, colour, row, column] = 1
        for frame, source in enumerate((colour, 8 + colour)):
            space[17 + 3 * frame + colour, source, :2, :2] = 0.25
            for slope, signs in enumerate(([[-1.0, 1.0], [-1.0, 1.0]], [[-1.0, -1.0], [1.0, 1.0]])):
                space[23 + slope, source, :2, :2] = torch.tensor(signs) / 12
            for half in range(2):
                time[6 * half + 3 * frame + colour, 17 + 3 * frame + colour, 1 + half] = 1
    for half in range(2):
        space[12 + half, 3, half, :2] = space[14 + half, 4, :2, half] = 0.5
        time[12 + 2 * half, 23, 1 + half] = time[13 + 2 * half, 24, 1 + half] = 1
    space[_DEEP, _SHALLOW, 0, 0] = time[_DEEP, _DEEP, 2] = 1


_QUARTERS = ((0, 0), (0, 1), (1, 0), (1, 1))
