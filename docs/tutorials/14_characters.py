"""A model of text, character by character: GRU and transformer, and what they write.

The text is what every Python carries along: the topics of its own help, plain English about Python.
From the characters so far the network gives the probability of each character to come next. The fewer
bits it takes to say which came, the better the model. A bigram table, which knows only the last
character, is what both have to beat clearly.
"""

import argparse
import math
from pydoc_data.topics import topics

import numpy as np

import nnx
from nnx.layers import GRU, Dense, Dropout, Embedding, LayerNormalization, PositionEmbedding, TransformerBlock

LENGTH = 64


def load(length):
    """Return the text as numbers of characters, and the characters: those beyond ASCII are left out."""
    text = "\n".join(topics[name] for name in sorted(topics))
    text = "".join(c for c in text if c == "\n" or 32 <= ord(c) < 127)[:length]
    characters = sorted(set(text))
    number = {c: i for i, c in enumerate(characters)}
    return np.array([number[c] for c in text]), characters


def windows(ids):
    """Return (samples, LENGTH) stretches of text, and the same one character on."""
    starts = np.arange(0, len(ids) - LENGTH - 1, LENGTH)
    places = starts[:, None] + np.arange(LENGTH)
    return ids[places], ids[places + 1]


def bigram_bits(train, test, count):
    """Return how many bits a character of the test text takes, by pairs counted in the training text."""
    pairs = np.ones((count, count))  # each pair is thought to have come once
    np.add.at(pairs, (train[:-1], train[1:]), 1)
    probability = pairs / pairs.sum(axis=1, keepdims=True)
    return float(-np.mean(np.log2(probability[test[:-1], test[1:]])))


def gru(count):
    return [Embedding(count, 32), GRU(128, return_sequences=True), Dropout(0.1), Dense(count, "softmax")]


def transformer(count):
    blocks = [
        TransformerBlock(num_heads=4, ff_dim=256, norm_first=True, use_causal_mask=True, dropout=0.1)
        for _ in range(2)
    ]
    head = [LayerNormalization(), Dense(count, "softmax")]
    return [Embedding(count, 64), PositionEmbedding(LENGTH), *blocks, *head]


def write(model, characters, prompt, length, seed=0):
    """Return the prompt and what the model writes behind it, drawing each character by its probability."""
    rng, text = np.random.default_rng(seed), prompt.rjust(LENGTH)
    for _ in range(length):
        ids = [[characters.index(c) for c in text[-LENGTH:]]]
        probability = model.predict(np.array(ids))[0, -1].astype(np.float64)
        text += characters[rng.choice(len(characters), p=probability / probability.sum())]
    return text.lstrip()


def main(epochs=8, length=300_000, prompt="The statement ", written=160):
    ids, characters = load(length)
    cut = int(0.9 * len(ids))
    train, test = ids[:cut], ids[cut:]
    bits = {"bigram table": bigram_bits(train, test, len(characters))}
    print(f"{len(ids):,} characters, {len(characters)} different ones")
    print(f"bigram table: {bits['bigram table']:.3f} bits a character")
    texts = {}
    for name, build in (("GRU", gru), ("transformer", transformer)):
        model = nnx.Sequential(build(len(characters)), seed=0)
        model.compile(nnx.optimizers.Adam(0.003, clipnorm=1.0), "sparse_categorical_crossentropy")
        model.fit(*windows(train), batch_size=32, epochs=epochs, verbose=0)
        bits[name] = model.evaluate(*windows(test), verbose=0) / math.log(2)
        print(f"{name}: {bits[name]:.3f} bits a character, {model.count_params():,} weights")
        texts[name] = write(model, characters, prompt, written)
        print(f"  it writes: {texts[name]!r}")
    return {"bits": bits, "written": texts}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--length", type=int, default=300_000)
    parser.add_argument("--prompt", default="The statement ")
    main(**vars(parser.parse_args()))
