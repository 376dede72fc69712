"""The book's own small networks, of LSTM, Linear and residual convolution layers, and their committed weights.

The files hold float16, to be half as large; the networks compute in float32.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.backends.mkldnn import flags as onednn

from qhelpers.tasks import checkpoints, digits, manual_text

State = tuple[Tensor, Tensor]
Net = TypeVar("Net", bound=nn.Module)


class CharLSTM(nn.Module):
    """Embedding, one LSTM, one Linear: from each character to the logits of the next one.

    Takes codes of shape ``(batch, length)`` and the state of an earlier call, or None. Returns logits
    ``(batch, length, vocabulary)`` and the new state.
    """

    def __init__(self, hidden: int = 512, embedding: int = 64, vocabulary: int = len(manual_text.VOCABULARY)) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, codes: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        outputs, state = self.lstm(self.embedding(codes), state)
        return self.head(outputs), state


class WithoutOneDNN(nn.Module):
    """The same network with oneDNN switched off while it runs: PyTorch's own kernels compute its LSTM."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, codes: Tensor) -> Any:
        with onednn(enabled=False):
            return self.net(codes)


class CellLoop(nn.Module):
    """The same language model with a loop over the steps, each an ``nn.LSTMCell`` with the weights of its LSTM."""

    def __init__(self, net: CharLSTM) -> None:
        super().__init__()
        self.embedding, self.head = net.embedding, net.head
        self.cell = nn.LSTMCell(net.lstm.input_size, net.lstm.hidden_size)
        weights = net.lstm.state_dict()
        self.cell.load_state_dict({name.removesuffix("_l0"): weights[name] for name in weights})

    def forward(self, codes: Tensor) -> tuple[Tensor, State]:
        start = torch.zeros(len(codes), self.cell.hidden_size)
        state: State = (start, start)
        outputs = []
        for letter in self.embedding(codes).unbind(1):
            state = self.cell(letter, state)
            outputs.append(state[0])
        return self.head(torch.stack(outputs, 1)), state


def load_language_model() -> CharLSTM:
    """The committed language model in float32, in evaluation mode; its file holds float16.

    Raises:
        CheckpointError: if the committed file is missing or altered.

    >>> load_language_model().lstm
    LSTM(64, 512, batch_first=True)
    """
    return _load(CharLSTM, "text_lstm_float16.pt")


class DigitTransformer(nn.Module):
    """A small vision transformer: 36 patches of a digit, four encoder layers, the mean of their outputs.

    Takes images ``(n, 3, 96, 96)`` as :func:`qhelpers.tasks.digits.prepare_images` makes them (their channels are
    equal but for normalization, so one is enough) and returns logits ``(n, 10)``.
    Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words".
    """

    def __init__(self, width: int = 192, layers: int = 4, patch: int = 16) -> None:
        super().__init__()
        self.patch = patch
        self.embedding = nn.Linear(patch * patch, width)
        self.positions = nn.Parameter(0.02 * torch.randn((digits.IMAGE_SIZE // patch) ** 2, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        patches = nn.functional.unfold(images[:, :1], self.patch, stride=self.patch).transpose(1, 2)
        tokens = self.encoder(self.embedding(patches) + self.positions)
        logits: Tensor = self.head(tokens.mean(dim=1))
        return logits


def load_digit_transformer() -> DigitTransformer:
    """The committed transformer for the digits in float32, in evaluation mode; its file holds float16.

    Raises:
        CheckpointError: if the committed file is missing or altered.

    >>> load_digit_transformer().head
    Linear(in_features=192, out_features=10, bias=True)
    """
    return _load(DigitTransformer, "digits_transformer_float16.pt")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each with a batch norm, and a way around them, as in the ResNets of 18 and 34 layers."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()  # the identity, unless the shape changes
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.downsample(x))


class DigitResNet(nn.Module):
    """A small residual network for the digits, written as one writes a float model: no stubs, plain ``+``.

    Takes images ``(n, 3, 96, 96)`` as :func:`qhelpers.tasks.digits.prepare_images` makes them, and returns logits
    ``(n, 10)``.
    Source: He et al. 2016, "Deep Residual Learning for Image Recognition".
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(ResidualBlock(width, width), ResidualBlock(width, width))
        self.layer2 = nn.Sequential(ResidualBlock(width, 2 * width, 2), ResidualBlock(2 * width, 2 * width))
        self.layer3 = nn.Sequential(ResidualBlock(2 * width, 4 * width, 2), ResidualBlock(4 * width, 4 * width))
        self.fc = nn.Linear(4 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(images))))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def load_digit_resnet() -> DigitResNet:
    """The committed residual network for the digits in float32, in evaluation mode; its file holds float16.

    Raises:
        CheckpointError: if the committed file is missing or altered.

    >>> load_digit_resnet().fc
    Linear(in_features=64, out_features=10, bias=True)
    """
    return _load(DigitResNet, "digits_resnet_float16.pt")


class PlaygroundNet(nn.Sequential):
    """The playground's network: small enough to run in a page, with the depthwise layers of a MobileNet.

    Takes images ``(n, 1, 28, 28)`` with values 0 to 1 and returns logits ``(n, 10)``. Its batch norms are folded. The
    layers that end in a bottleneck (``pw1``) have no ReLU behind them, as in MobileNetV2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.relu1 = nn.ReLU()
        self.dw1 = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.relu2 = nn.ReLU()
        self.pw1 = nn.Conv2d(16, 32, 1)
        self.dw2 = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.relu3 = nn.ReLU()
        self.pw2 = nn.Conv2d(32, 32, 1)
        self.relu4 = nn.ReLU()
        self.head = nn.Conv2d(32, 10, 7)  # a Linear layer over 32 planes of 7x7, written as a convolution
        self.flatten = nn.Flatten()


def load_playground_net() -> PlaygroundNet:
    """The committed network of the playground in float32, in evaluation mode; its file holds float16.

    Raises:
        CheckpointError: if the committed file is missing or altered.

    >>> sum(parameter.numel() for parameter in load_playground_net().parameters())
    17930
    """
    return _load(PlaygroundNet, "playground_float16.pt")


def _load(kind: type[Net], name: str) -> Net:
    state = checkpoints.committed_state(name)
    with torch.random.fork_rng(devices=[]):
        model = kind()
    checkpoints.load_into(model, {key: value.float() for key, value in state.items()}, name)
    return model
