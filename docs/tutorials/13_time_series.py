"""A recurrent network reads a series and forecasts it: LSTM against "tomorrow is like today".

The series is Mackey and Glass's, a stated formula that stands for how blood cells renew themselves:

    x[t+1] = x[t] + 0.2 * x[t-17] / (1 + x[t-17]**10) - 0.1 * x[t]

It never repeats. From the last 48 values the network forecasts the value 12 steps ahead; it is judged
on later stretches of the series than it was trained on, against the naive forecast that nothing
changes, and against a straight line through the same 48 values.
"""

import argparse
from pathlib import Path

import numpy as np

import nnx
from nnx.layers import LSTM, Dense

PAST, AHEAD = 48, 12


def mackey_glass(length, noise=0.02, seed=0):
    """Return the series, with some noise of measurement."""
    x = list(0.5 + np.random.default_rng(seed).random(18))
    for _ in range(length + 300):
        x.append(x[-1] + 0.2 * x[-18] / (1 + x[-18] ** 10) - 0.1 * x[-1])
    series = np.array(x[-length:])
    return series + noise * np.random.default_rng(seed + 1).standard_normal(length)


def windows(series):
    """Return (samples, PAST, 1) stretches of the series and the values AHEAD steps behind each."""
    X = np.lib.stride_tricks.sliding_window_view(series[:-AHEAD], PAST)
    return X[..., None], series[PAST + AHEAD - 1 :]


def rmse(a, b):
    return float(np.sqrt(np.mean((a - b) ** 2)))


def main(epochs=20, picture=None):
    series = mackey_glass(3000)
    train, test = series[:2200], series[2200:]
    mean, scale = train.mean(), train.std()
    (X_train, y_train), (X_test, y_test) = (windows((part - mean) / scale) for part in (train, test))

    model = nnx.Sequential([LSTM(32, input_shape=(PAST, 1)), Dense(1)], seed=0)
    model.compile(nnx.optimizers.Adam(0.005, clipnorm=1.0), "mse")
    history = model.fit(X_train, y_train, batch_size=64, epochs=epochs, validation_split=0.1, verbose=0)

    line, *_ = np.linalg.lstsq(_with_one(X_train), y_train, rcond=None)
    forecasts = {
        "nothing changes": X_test[:, -1, 0],
        "a straight line": _with_one(X_test) @ line,
        "LSTM": model.predict(X_test)[:, 0],
    }
    errors = {name: scale * rmse(forecast, y_test) for name, forecast in forecasts.items()}
    for name, error in errors.items():
        print(f"{name:16} is wrong by {error:.4f} (root mean square), {AHEAD} steps ahead")
    if picture is not None:
        draw(picture, y_test * scale + mean, {n: f * scale + mean for n, f in forecasts.items()})
    return {"errors": errors, "loss": history.history["loss"]}


def _with_one(X):
    return np.hstack([X[..., 0], np.ones((len(X), 1))])


def draw(path, truth, forecasts, count=200):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 3.5), layout="constrained")
    axes.plot(truth[:count], color="black", linewidth=1.5, label="the series")
    for name, style in (("nothing changes", ":"), ("LSTM", "--")):
        axes.plot(forecasts[name][:count], style, linewidth=1.5, label=f"{name}, {AHEAD} steps before")
    axes.set(xlabel="time step", ylabel="value", title="Forecasts of a series that never repeats")
    axes.legend(loc="upper center", ncols=3, frameon=False)
    axes.margins(y=0.15)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"picture: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/tutorials"))
    arguments = parser.parse_args()
    main(arguments.epochs, arguments.out / "time_series.png")
