from device_counts import layer_counts

from nnx import layers


def test_x():
    for l in (
        layers.SimpleRNN(3),
        layers.LSTM(3),
        layers.GRU(3),
        layers.GRU(3, reset_after=False),
        layers.LSTM(3, return_sequences=True),
        layers.LSTM(3, dropout=0.2, recurrent_dropout=0.2, go_backwards=True),
    ):
        print(l, [layer_counts(l, (t, 2)) for t in (4, 5, 7)])
