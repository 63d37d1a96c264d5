"""Grid search: try every combination of settings, keep the one that does best on validation samples.

Learning rate, width and activation are chosen by hand, not learnt. Each combination is trained alike
and compared by its validation loss. The winner was chosen for its luck on the validation samples too,
so what it is worth is measured on a third part, the test samples, used once.
"""

from itertools import product

from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import nnx

LEARNING_RATES = (0.001, 0.01, 0.1)
HIDDEN_UNITS = (4, 8, 16)
ACTIVATIONS = ("relu", "tanh")


def main(learning_rates=LEARNING_RATES, hidden_units=HIDDEN_UNITS, activations=ACTIVATIONS):
    X, y = load_iris(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=42, stratify=y)
    X, X_val, y, y_val = train_test_split(X, y, test_size=0.25, random_state=42, stratify=y)
    scaler = StandardScaler().fit(X)
    X, X_val, X_test = (scaler.transform(part) for part in (X, X_val, X_test))

    rows, models = [], {}
    for rate, units, activation in product(learning_rates, hidden_units, activations):
        model = nnx.Sequential(
            [nnx.layers.Dense(units, activation, input_shape=(4,)), nnx.layers.Dense(3, "softmax")], seed=0
        )
        model.compile(nnx.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(X, y, batch_size=15, epochs=60, verbose=0)
        val_loss, val_accuracy = model.evaluate(X_val, y_val, verbose=0)
        rows.append({"learning_rate": rate, "units": units, "activation": activation,
                     "val_loss": val_loss, "val_accuracy": val_accuracy})  # fmt: skip
        models[rate, units, activation] = model

    rows.sort(key=lambda row: row["val_loss"])
    print("learning rate  units  activation  val loss  val accuracy")
    for row in rows:
        print(f"{row['learning_rate']:13g} {row['units']:6}  {row['activation']:10}  {row['val_loss']:8.4f} "
              f"{row['val_accuracy']:13.3f}")  # fmt: skip
    best = rows[0]
    chosen = models[best["learning_rate"], best["units"], best["activation"]]
    test_accuracy = chosen.evaluate(X_test, y_test, verbose=0)[1]
    print(f"best: learning rate {best['learning_rate']:g}, {best['units']} hidden units, {best['activation']}; "
          f"test accuracy {test_accuracy:.3f}")  # fmt: skip
    return {"rows": rows, "best": best, "test_accuracy": test_accuracy}


if __name__ == "__main__":
    main()
