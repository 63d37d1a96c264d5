"""A table of numbers and categories: residual blocks, and an input of its own for each kind of column.

A category, such as a person's sex or a city, has no size: it gets a vector that is learnt (an
embedding), and numbers are standardised. Two inputs, given as a dict, meet in a network of residual
blocks, y = x + f(x), each of which only has to learn what to change. The task is scikit-learn's
diabetes data, 442 patients: how far the disease has gone a year later, from age, blood pressure,
blood values, and sex. With so few patients a straight line is hard to beat.
"""

import argparse

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split

import nnx
from nnx.layers import Dense, Dropout, Embedding, Flatten, Inputs, Residual


def load(seed):
    """Return training and test parts: ({"numbers": (patients, 9), "sex": (patients, 1)}, target)."""
    data = load_diabetes(scaled=False)
    is_category = np.array([name == "sex" for name in data.feature_names])
    numbers, sex = data.data[:, ~is_category], data.data[:, is_category] - 1  # from 0 on
    rows = np.arange(len(numbers))
    train, test = train_test_split(rows, test_size=0.25, random_state=seed)
    mean, scale = numbers[train].mean(axis=0), numbers[train].std(axis=0)
    numbers = (numbers - mean) / scale
    centre, spread = data.target[train].mean(), data.target[train].std()
    target = (data.target - centre) / spread
    return [
        ({"numbers": numbers[part], "sex": sex[part].astype(int)}, target[part]) for part in (train, test)
    ]


def residual_network(first, seed):
    def block():
        return Residual([Dense(32, "relu"), Dropout(0.3), Dense(16, kernel_initializer="zeros")])

    return nnx.Sequential([first, Dense(16), block(), block(), Dense(1)], seed=seed)


def fit(model, x, y, epochs):
    """Train until the validation loss has not fallen for ten epochs, and go back to the best."""
    model.compile(nnx.optimizers.AdamW(0.003, weight_decay=0.05), "mse")
    stop = nnx.callbacks.EarlyStopping(patience=10, restore_best_weights=True)
    model.fit(x, y, batch_size=32, epochs=epochs, validation_split=0.2, callbacks=[stop], verbose=0)


def main(epochs=100, seed=0):
    (X_train, y_train), (X_test, y_test) = load(seed)
    scores = {}

    line = LinearRegression().fit(np.hstack(list(X_train.values())), y_train)
    scores["a straight line"] = r2_score(y_test, line.predict(np.hstack(list(X_test.values()))))

    one = residual_network(nnx.layers.Linear(), seed)
    fit(one, X_train["numbers"], y_train, epochs)
    scores["residual, numbers only"] = r2_score(y_test, one.predict(X_test["numbers"]))

    two = residual_network(Inputs({"numbers": [], "sex": [Embedding(2, 4), Flatten()]}), seed)
    fit(two, X_train, y_train, epochs)
    scores["residual, numbers and sex"] = r2_score(y_test, two.predict(X_test))
    two.summary()

    for name, score in scores.items():
        print(f"{name:26} R² {score:.3f} on {len(y_test)} patients not seen")
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
