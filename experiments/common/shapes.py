"""Models by the name of their shape: sizes and dtype, for runs on random or abstract weights."""

import msrnn_jax as ms

LLAMA_3_8B = ms.Config(
    vocab_size=128256,
    model_dim=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=14336,
    max_length=8192,
    norm_eps=1e-5,
    rope=ms.Rope(theta=500000.0),
    dtype="bfloat16",
)
SHAPES: dict[str, ms.Config] = {
    "llama-2-7b": ms.Config(
        vocab_size=32000,
        model_dim=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        mlp_dim=11008,
        max_length=4096,
        norm_eps=1e-5,
        dtype="bfloat16",
    ),
    "llama-3-8b": LLAMA_3_8B,
    "llama-3-70b": LLAMA_3_8B.replace(model_dim=8192, num_layers=80, num_heads=64, mlp_dim=28672),
    "smollm2-135m": ms.Config(
        vocab_size=49152,
        model_dim=576,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        mlp_dim=1536,
        max_length=8192,
        norm_eps=1e-5,
        rope=ms.Rope(theta=100000.0),
        tied_embeddings=True,
        dtype="float32",
    ),
    # Compiled and run in seconds anywhere, for checks of what does not depend on size.
    "tiny": ms.Config(
        vocab_size=512,
        model_dim=64,
        num_layers=2,
        num_heads=8,
        num_kv_heads=4,
        head_dim=16,
        mlp_dim=192,
        max_length=4096,
        dtype="float32",
    ),
}
