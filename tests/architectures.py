"""Names and shapes of well-known architectures, as their checkpoints have them: layouts without values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fingerprint import dtypes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fingerprint.tensors import Array

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Shape:
    """A view that has only a name and a shape: laying out reads no values."""

    name: str
    shape: tuple[int, ...]
    dtype: dtypes.DType = dtypes.BF16

    def read(self, start: int, stop: int) -> Array:
        raise AssertionError("values were read")


def views(shapes: Shapes) -> list[Shape]:
    return [Shape(name, shape) for name, shape in shapes.items()]


def linear(name: str, rows: int, columns: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (rows, columns), **({f"{name}.bias": (rows,)} if bias else {})}


def norm(name: str, width: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (width,), **({f"{name}.bias": (width,)} if bias else {})}


def llama(
    layers: int, width: int, inner: int, keys: int, neurons: int, tokens: int, *,
    prefix: str = "model.", tied: bool = False, bias: bool = False, head: int = 0, four_norms: bool = False,
) -> Shapes:  # fmt: skip
    shapes: Shapes = {f"{prefix}embed_tokens.weight": (tokens, width)}
    for layer in range(layers):
        at = f"{prefix}layers.{layer}."
        shapes |= linear(f"{at}self_attn.q_proj", inner, width, bias=bias)
        shapes |= linear(f"{at}self_attn.k_proj", keys, width, bias=bias)
        shapes |= linear(f"{at}self_attn.v_proj", keys, width, bias=bias)
        shapes |= linear(f"{at}self_attn.o_proj", width, inner, bias=False)
        if head:
            shapes |= {f"{at}self_attn.q_norm.weight": (head,), f"{at}self_attn.k_norm.weight": (head,)}
        shapes |= linear(f"{at}mlp.gate_proj", neurons, width, bias=False)
        shapes |= linear(f"{at}mlp.up_proj", neurons, width, bias=False)
        shapes |= linear(f"{at}mlp.down_proj", width, neurons, bias=False)
        shapes |= norm(f"{at}input_layernorm", width, bias=False)
        shapes |= norm(f"{at}post_attention_layernorm", width, bias=False)
        if four_norms:
            shapes |= norm(f"{at}pre_feedforward_layernorm", width, bias=False)
            shapes |= norm(f"{at}post_feedforward_layernorm", width, bias=False)
    shapes |= norm(f"{prefix}norm", width, bias=False)
    if not tied:
        shapes["lm_head.weight"] = (tokens, width)
    return shapes


def phi3() -> Shapes:
    shapes = {name: shape for name, shape in llama(32, 3072, 3072, 3072, 8192, 32064).items() if "_proj" not in name}
    for layer in range(32):
        at = f"model.layers.{layer}."
        shapes[f"{at}self_attn.qkv_proj.weight"] = (9216, 3072)
        shapes[f"{at}self_attn.o_proj.weight"] = (3072, 3072)
        shapes[f"{at}mlp.gate_up_proj.weight"] = (16384, 3072)
        shapes[f"{at}mlp.down_proj.weight"] = (3072, 8192)
    return shapes


def phi3_medium() -> Shapes:
    shapes: Shapes = {}
    for name, shape in llama(40, 5120, 5120, 1280, 17920, 32064).items():
        if "k_proj" in name or "v_proj" in name or "up_proj" in name:
            continue
        if "q_proj" in name:
            shapes[name.replace("q_proj", "qkv_proj")] = (7680, 5120)
        elif "gate_proj" in name:
            shapes[name.replace("gate_proj", "gate_up_proj")] = (35840, 5120)
        else:
            shapes[name] = shape
    return shapes


def phi2() -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (51200, 2560)}
    for layer in range(32):
        at = f"model.layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "dense"):
            shapes |= linear(f"{at}self_attn.{part}", 2560, 2560)
        shapes |= linear(f"{at}mlp.fc1", 10240, 2560) | linear(f"{at}mlp.fc2", 2560, 10240)
        shapes |= norm(f"{at}input_layernorm", 2560)
    return shapes | norm("model.final_layernorm", 2560) | linear("lm_head", 51200, 2560)


def gpt2(layers: int = 12, width: int = 768, tokens: int = 50257, places: int = 1024) -> Shapes:
    shapes: Shapes = {"wte.weight": (tokens, width), "wpe.weight": (places, width)}
    for layer in range(layers):
        at = f"h.{layer}."
        shapes[f"{at}attn.bias"] = (1, 1, places, places)
        shapes |= {f"{at}attn.c_attn.weight": (width, 3 * width), f"{at}attn.c_attn.bias": (3 * width,)}
        shapes |= {f"{at}attn.c_proj.weight": (width, width), f"{at}attn.c_proj.bias": (width,)}
        shapes |= {f"{at}mlp.c_fc.weight": (width, 4 * width), f"{at}mlp.c_fc.bias": (4 * width,)}
        shapes |= {f"{at}mlp.c_proj.weight": (4 * width, width), f"{at}mlp.c_proj.bias": (width,)}
        shapes |= norm(f"{at}ln_1", width) | norm(f"{at}ln_2", width)
    return shapes | norm("ln_f", width)


def neox(layers: int = 24, width: int = 1024, tokens: int = 50304) -> Shapes:
    """Pythia-410M's sizes."""
    shapes: Shapes = {"gpt_neox.embed_in.weight": (tokens, width)}
    for layer in range(layers):
        at = f"gpt_neox.layers.{layer}."
        shapes |= linear(f"{at}attention.query_key_value", 3 * width, width) | linear(
            f"{at}attention.dense", width, width
        )
        shapes |= linear(f"{at}mlp.dense_h_to_4h", 4 * width, width) | linear(
            f"{at}mlp.dense_4h_to_h", width, 4 * width
        )
        shapes |= norm(f"{at}input_layernorm", width) | norm(f"{at}post_attention_layernorm", width)
        shapes |= {f"{at}attention.bias": (1, 1, 2048, 2048), f"{at}attention.masked_bias": ()}
        shapes[f"{at}attention.rotary_emb.inv_freq"] = (8,)
    return shapes | norm("gpt_neox.final_layer_norm", width) | {"embed_out.weight": (tokens, width)}


def gptj() -> Shapes:
    shapes: Shapes = {"transformer.wte.weight": (50400, 4096)}
    for layer in range(28):
        at = f"transformer.h.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{at}attn.{part}", 4096, 4096, bias=False)
        shapes |= linear(f"{at}mlp.fc_in", 16384, 4096) | linear(f"{at}mlp.fc_out", 4096, 16384)
        shapes |= norm(f"{at}ln_1", 4096)
    return shapes | norm("transformer.ln_f", 4096) | linear("lm_head", 50400, 4096)


def opt() -> Shapes:
    """OPT-125M."""
    at = "model.decoder."
    shapes: Shapes = {f"{at}embed_tokens.weight": (50272, 768), f"{at}embed_positions.weight": (2050, 768)}
    for layer in range(12):
        at = f"model.decoder.layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{at}self_attn.{part}", 768, 768)
        shapes |= linear(f"{at}fc1", 3072, 768) | linear(f"{at}fc2", 768, 3072)
        shapes |= norm(f"{at}self_attn_layer_norm", 768) | norm(f"{at}final_layer_norm", 768)
    return shapes | norm("model.decoder.final_layer_norm", 768) | {"lm_head.weight": (50272, 768)}


def bloom() -> Shapes:
    """BLOOM-560M."""
    shapes: Shapes = {"word_embeddings.weight": (250880, 1024)} | norm("word_embeddings_layernorm", 1024)
    for layer in range(24):
        at = f"h.{layer}."
        shapes |= linear(f"{at}self_attention.query_key_value", 3072, 1024)
        shapes |= linear(f"{at}self_attention.dense", 1024, 1024)
        shapes |= linear(f"{at}mlp.dense_h_to_4h", 4096, 1024) | linear(f"{at}mlp.dense_4h_to_h", 1024, 4096)
        shapes |= norm(f"{at}input_layernorm", 1024) | norm(f"{at}post_attention_layernorm", 1024)
    return shapes | norm("ln_f", 1024)


def falcon(width: int = 4544, rows: int = 4672, layers: int = 32) -> Shapes:
    """Falcon-7B; 8192 and 9216 are Falcon-40B's."""
    shapes: Shapes = {"transformer.word_embeddings.weight": (65024, width)}
    for layer in range(layers):
        at = f"transformer.h.{layer}."
        shapes |= linear(f"{at}self_attention.query_key_value", rows, width, bias=False)
        shapes |= linear(f"{at}self_attention.dense", width, width, bias=False)
        shapes |= linear(f"{at}mlp.dense_h_to_4h", 4 * width, width, bias=False)
        shapes |= linear(f"{at}mlp.dense_4h_to_h", width, 4 * width, bias=False)
        shapes |= norm(f"{at}input_layernorm", width)
    return shapes | norm("transformer.ln_f", width) | {"lm_head.weight": (65024, width)}


def bert(
    layers: int = 12, width: int = 768, tokens: int = 30522, prefix: str = "bert.", *, head: bool = True
) -> Shapes:
    at = f"{prefix}embeddings."
    shapes: Shapes = {
        f"{at}word_embeddings.weight": (tokens, width), f"{at}position_embeddings.weight": (512, width),
        f"{at}token_type_embeddings.weight": (2, width), f"{at}position_ids": (1, 512),
    } | norm(f"{at}LayerNorm", width)  # fmt: skip
    for layer in range(layers):
        at = f"{prefix}encoder.layer.{layer}."
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{at}attention.{part}", width, width)
        shapes |= norm(f"{at}attention.output.LayerNorm", width)
        shapes |= linear(f"{at}intermediate.dense", 4 * width, width) | linear(f"{at}output.dense", width, 4 * width)
        shapes |= norm(f"{at}output.LayerNorm", width)
    shapes |= linear(f"{prefix}pooler.dense", width, width)
    if head:
        at = "cls.predictions."
        shapes |= linear(f"{at}transform.dense", width, width) | norm(f"{at}transform.LayerNorm", width)
        shapes |= {f"{at}bias": (tokens,), f"{at}decoder.weight": (tokens, width)} | linear(
            "cls.seq_relationship", 2, width
        )
    return shapes


def distilbert() -> Shapes:
    at = "distilbert.embeddings."
    shapes: Shapes = {f"{at}word_embeddings.weight": (30522, 768), f"{at}position_embeddings.weight": (512, 768)}
    shapes |= norm(f"{at}LayerNorm", 768)
    for layer in range(6):
        at = f"distilbert.transformer.layer.{layer}."
        for part in ("q_lin", "k_lin", "v_lin", "out_lin"):
            shapes |= linear(f"{at}attention.{part}", 768, 768)
        shapes |= norm(f"{at}sa_layer_norm", 768) | norm(f"{at}output_layer_norm", 768)
        shapes |= linear(f"{at}ffn.lin1", 3072, 768) | linear(f"{at}ffn.lin2", 768, 3072)
    return shapes | linear("pre_classifier", 768, 768) | linear("classifier", 2, 768)


def t5(width: int = 512, inner: int = 512, heads: int = 8, neurons: int = 2048, *, gated: bool = False) -> Shapes:
    """T5-small; 512, 384, 6, 1024, gated is FLAN-T5-small's."""
    shapes: Shapes = {"shared.weight": (32128, width)}
    for side in ("encoder", "decoder"):
        for layer in range(6):
            at = f"{side}.block.{layer}.layer."
            blocks = ["0.SelfAttention"] + ["1.EncDecAttention"] * (side == "decoder")
            for block in blocks:
                for part in "qkv":
                    shapes |= linear(f"{at}{block}.{part}", inner, width, bias=False)
                shapes |= linear(f"{at}{block}.o", width, inner, bias=False)
            if not layer:
                shapes[f"{at}0.SelfAttention.relative_attention_bias.weight"] = (32, heads)
            at = f"{at}{len(blocks)}.DenseReluDense."
            for part in ("wi_0", "wi_1") if gated else ("wi",):
                shapes |= linear(f"{at}{part}", neurons, width, bias=False)
            shapes |= linear(f"{at}wo", width, neurons, bias=False)
            for place in range(len(blocks) + 1):
                shapes |= norm(f"{side}.block.{layer}.layer.{place}.layer_norm", width, bias=False)
        shapes |= norm(f"{side}.final_layer_norm", width, bias=False)
    return shapes | ({"lm_head.weight": (32128, width)} if gated else {})


def vit() -> Shapes:
    """ViT-B/16."""
    at = "vit.embeddings."
    shapes: Shapes = {f"{at}cls_token": (1, 1, 768), f"{at}position_embeddings": (1, 197, 768)}
    at += "patch_embeddings.projection."
    shapes |= {f"{at}weight": (768, 3, 16, 16), f"{at}bias": (768,)}
    for layer in range(12):
        at = f"vit.encoder.layer.{layer}."
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            shapes |= linear(f"{at}attention.{part}", 768, 768)
        shapes |= linear(f"{at}intermediate.dense", 3072, 768) | linear(f"{at}output.dense", 768, 3072)
        shapes |= norm(f"{at}layernorm_before", 768) | norm(f"{at}layernorm_after", 768)
    return shapes | norm("vit.layernorm", 768) | linear("classifier", 1000, 768)


def timm_vit() -> Shapes:
    shapes: Shapes = {"cls_token": (1, 1, 768), "pos_embed": (1, 197, 768)}
    shapes |= {"patch_embed.proj.weight": (768, 3, 16, 16), "patch_embed.proj.bias": (768,)}
    for layer in range(12):
        at = f"blocks.{layer}."
        shapes |= linear(f"{at}attn.qkv", 2304, 768) | linear(f"{at}attn.proj", 768, 768)
        shapes |= linear(f"{at}mlp.fc1", 3072, 768) | linear(f"{at}mlp.fc2", 768, 3072)
        shapes |= norm(f"{at}norm1", 768) | norm(f"{at}norm2", 768)
    return shapes | norm("norm", 768) | linear("head", 1000, 768)


def clip(*, siglip: bool = False) -> Shapes:
    """CLIP ViT-B/32, or SigLIP-base."""
    shapes: Shapes = {"logit_scale": ()}
    towers = (("vision_model", 768, 3072), ("text_model", 768 if siglip else 512, 3072 if siglip else 2048))
    for tower, width, neurons in towers:
        for layer in range(12):
            at = f"{tower}.encoder.layers.{layer}."
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes |= linear(f"{at}self_attn.{part}", width, width)
            shapes |= linear(f"{at}mlp.fc1", neurons, width) | linear(f"{at}mlp.fc2", width, neurons)
            shapes |= norm(f"{at}layer_norm1", width) | norm(f"{at}layer_norm2", width)
    at = "vision_model.embeddings."
    shapes |= {f"{at}patch_embedding.weight": (768, 3, 32, 32), f"{at}position_embedding.weight": (50, 768)}
    at, width = "text_model.embeddings.", 768 if siglip else 512
    shapes |= {f"{at}token_embedding.weight": (49408, width), f"{at}position_embedding.weight": (77, width)}
    shapes |= norm("vision_model.post_layernorm", 768) | norm("text_model.final_layer_norm", width)
    if siglip:
        at = "vision_model.head."
        shapes |= {f"{at}probe": (1, 1, 768), f"{at}attention.in_proj_weight": (2304, 768)}
        shapes |= {f"{at}attention.in_proj_bias": (2304,)} | linear(f"{at}attention.out_proj", 768, 768)
        shapes |= linear(f"{at}mlp.fc1", 3072, 768) | linear(f"{at}mlp.fc2", 768, 3072) | norm(f"{at}layernorm", 768)
        return shapes | linear("text_model.head", 768, 768)
    return shapes | {"visual_projection.weight": (512, 768), "text_projection.weight": (512, 512)}


def mixtral() -> Shapes:
    shapes = {name: shape for name, shape in llama(32, 4096, 4096, 1024, 14336, 32000).items() if ".mlp." not in name}
    for layer in range(32):
        at = f"model.layers.{layer}.block_sparse_moe."
        shapes[f"{at}gate.weight"] = (8, 4096)
        for expert in range(8):
            shapes[f"{at}experts.{expert}.w1.weight"] = (14336, 4096)
            shapes[f"{at}experts.{expert}.w2.weight"] = (4096, 14336)
            shapes[f"{at}experts.{expert}.w3.weight"] = (14336, 4096)
    return shapes


def experts(at: str, count: int, neurons: int, width: int) -> Shapes:
    shapes: Shapes = {}
    for expert in range(count):
        shapes[f"{at}experts.{expert}.gate_proj.weight"] = (neurons, width)
        shapes[f"{at}experts.{expert}.up_proj.weight"] = (neurons, width)
        shapes[f"{at}experts.{expert}.down_proj.weight"] = (width, neurons)
    return shapes


def qwen_moe() -> Shapes:
    """Qwen1.5-MoE-A2.7B."""
    shapes = {
        name: shape for name, shape in llama(24, 2048, 2048, 2048, 1, 151936, bias=True).items() if ".mlp." not in name
    }
    for layer in range(24):
        at = f"model.layers.{layer}.mlp."
        shapes |= experts(at, 60, 1408, 2048) | {
            f"{at}gate.weight": (60, 2048),
            f"{at}shared_expert_gate.weight": (1, 2048),
        }
        shapes |= {f"{at}shared_expert.{part}_proj.weight": (5632, 2048) for part in ("gate", "up")}
        shapes[f"{at}shared_expert.down_proj.weight"] = (2048, 5632)
    return shapes


def deepseek_v3(layers: int = 61, routed: int = 256, *, scales: bool = False) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (129280, 7168), "lm_head.weight": (129280, 7168)}
    for layer in range(layers + 1):
        at = f"model.layers.{layer}."
        shapes |= {
            f"{at}self_attn.q_a_proj.weight": (1536, 7168), f"{at}self_attn.q_b_proj.weight": (24576, 1536),
            f"{at}self_attn.kv_a_proj_with_mqa.weight": (576, 7168), f"{at}self_attn.kv_b_proj.weight": (32768, 512),
            f"{at}self_attn.o_proj.weight": (7168, 16384), f"{at}self_attn.q_a_layernorm.weight": (1536,),
            f"{at}self_attn.kv_a_layernorm.weight": (512,), f"{at}input_layernorm.weight": (7168,),
            f"{at}post_attention_layernorm.weight": (7168,),
        }  # fmt: skip
        if layer < 3:
            shapes |= {f"{at}mlp.{part}_proj.weight": (18432, 7168) for part in ("gate", "up")}
            shapes[f"{at}mlp.down_proj.weight"] = (7168, 18432)
            continue
        shapes |= {f"{at}mlp.gate.weight": (routed, 7168), f"{at}mlp.gate.e_score_correction_bias": (routed,)}
        shapes |= experts(f"{at}mlp.", routed, 2048, 7168)
        shapes |= {f"{at}mlp.shared_experts.{part}_proj.weight": (2048, 7168) for part in ("gate", "up")}
        shapes[f"{at}mlp.shared_experts.down_proj.weight"] = (7168, 2048)
        if layer == layers:
            shapes |= {f"{at}embed_tokens.weight": (129280, 7168), f"{at}eh_proj.weight": (7168, 14336)}
            shapes |= {f"{at}enorm.weight": (7168,), f"{at}hnorm.weight": (7168,)}
            shapes |= {f"{at}shared_head.head.weight": (129280, 7168), f"{at}shared_head.norm.weight": (7168,)}
    shapes["model.norm.weight"] = (7168,)
    if scales:
        quantised = [name for name, shape in shapes.items() if "_proj" in name and len(shape) == 2]
        shapes |= {f"{name}_scale_inv": (-(-shapes[name][0] // 128), -(-shapes[name][1] // 128)) for name in quantised}
    return shapes


def deepseek_v2_lite() -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (102400, 2048), "lm_head.weight": (102400, 2048)}
    for layer in range(27):
        at = f"model.layers.{layer}."
        shapes |= {
            f"{at}self_attn.q_proj.weight": (3072, 2048), f"{at}self_attn.kv_a_proj_with_mqa.weight": (576, 2048),
            f"{at}self_attn.kv_b_proj.weight": (4096, 512), f"{at}self_attn.o_proj.weight": (2048, 2048),
            f"{at}self_attn.kv_a_layernorm.weight": (512,),
        }  # fmt: skip
        if not layer:
            shapes |= {f"{at}mlp.{part}_proj.weight": (10944, 2048) for part in ("gate", "up")}
            shapes[f"{at}mlp.down_proj.weight"] = (2048, 10944)
            continue
        shapes |= experts(f"{at}mlp.", 64, 1408, 2048) | {f"{at}mlp.gate.weight": (64, 2048)}
        shapes |= {f"{at}mlp.shared_experts.{part}_proj.weight": (2816, 2048) for part in ("gate", "up")}
        shapes[f"{at}mlp.shared_experts.down_proj.weight"] = (2048, 2816)
    return shapes


def gpt_oss(layers: int = 24, count: int = 32, width: int = 2880, neurons: int = 2880) -> Shapes:
    """gpt-oss-20b, dequantised."""
    shapes: Shapes = {"model.embed_tokens.weight": (201088, width), "lm_head.weight": (201088, width)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes |= linear(f"{at}self_attn.q_proj", 4096, width) | linear(f"{at}self_attn.o_proj", width, 4096)
        shapes |= linear(f"{at}self_attn.k_proj", 512, width) | linear(f"{at}self_attn.v_proj", 512, width)
        shapes |= {f"{at}self_attn.sinks": (64,)} | linear(f"{at}mlp.router", count, width)
        shapes |= {
            f"{at}mlp.experts.gate_up_proj": (count, width, 2 * neurons),
            f"{at}mlp.experts.gate_up_proj_bias": (count, 2 * neurons),
            f"{at}mlp.experts.down_proj": (count, neurons, width), f"{at}mlp.experts.down_proj_bias": (count, width),
        }  # fmt: skip
        shapes |= norm(f"{at}input_layernorm", width, bias=False)
    return shapes


def stacked_moe(*, out_in: bool = False) -> Shapes:
    """Qwen3-VL-30B-A3B's text model, as transformers 4 writes it, or as 5 does."""
    shapes = {
        name: shape for name, shape in llama(48, 2048, 4096, 512, 1, 151936, head=128).items() if ".mlp." not in name
    }
    for layer in range(48):
        at = f"model.layers.{layer}.mlp."
        shapes[f"{at}gate.weight"] = (128, 2048)
        shapes[f"{at}experts.gate_up_proj"] = (128, 1536, 2048) if out_in else (128, 2048, 1536)
        shapes[f"{at}experts.down_proj"] = (128, 2048, 768) if out_in else (128, 768, 2048)
    return shapes


def llama4() -> Shapes:
    """Llama 4 Scout's text model."""
    shapes: Shapes = {}
    prefix = "language_model.model."
    for name, shape in llama(48, 5120, 5120, 1024, 1, 202048, prefix=prefix).items():
        if ".mlp." not in name:
            shapes[name] = shape
    for layer in range(48):
        at = f"{prefix}layers.{layer}.feed_forward."
        shapes |= {f"{at}router.weight": (16, 5120), f"{at}experts.gate_up_proj": (16, 5120, 16384)}
        shapes |= {f"{at}experts.down_proj": (16, 8192, 5120), f"{at}shared_expert.down_proj.weight": (5120, 8192)}
        shapes |= {f"{at}shared_expert.{part}_proj.weight": (8192, 5120) for part in ("gate", "up")}
    return shapes


def gguf(*, moe: bool = False) -> Shapes:
    """Llama-3-8B, or Mixtral-8x7B, as llama.cpp names it; shapes in row-major order."""
    shapes: Shapes = {
        "token_embd.weight": (128256, 4096),
        "output.weight": (128256, 4096),
        "output_norm.weight": (4096,),
    }
    for layer in range(32):
        at = f"blk.{layer}."
        shapes |= {f"{at}attn_q.weight": (4096, 4096), f"{at}attn_output.weight": (4096, 4096)}
        shapes |= {f"{at}attn_k.weight": (1024, 4096), f"{at}attn_v.weight": (1024, 4096)}
        shapes |= {f"{at}attn_norm.weight": (4096,), f"{at}ffn_norm.weight": (4096,)}
        stack, tail = ((8,), "_exps") if moe else ((), "")
        shapes |= {f"{at}ffn_{part}{tail}.weight": (*stack, 14336, 4096) for part in ("gate", "up")}
        shapes[f"{at}ffn_down{tail}.weight"] = (*stack, 4096, 14336)
        if moe:
            shapes[f"{at}ffn_gate_inp.weight"] = (8, 4096)
    return shapes | {"rope_freqs.weight": (64,)}


def llava() -> Shapes:
    """A vision tower of width 1024 before a Mistral whose keys are 1024 wide: sizes that meet by chance."""
    shapes = llama(32, 4096, 4096, 1024, 14336, 32064, prefix="language_model.model.")
    for layer in range(24):
        at = f"vision_tower.vision_model.encoder.layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{at}self_attn.{part}", 1024, 1024)
        shapes |= linear(f"{at}mlp.fc1", 4096, 1024) | linear(f"{at}mlp.fc2", 1024, 4096)
    at = "vision_tower.vision_model.embeddings."
    shapes |= {f"{at}patch_embedding.weight": (1024, 3, 14, 14), f"{at}position_embedding.weight": (577, 1024)}
    return (
        shapes
        | linear("multi_modal_projector.linear_1", 4096, 1024)
        | linear("multi_modal_projector.linear_2", 4096, 4096)
    )


def whisper() -> Shapes:
    """Whisper-tiny: sinusoidal positions in the encoder."""
    at = "model.encoder."
    shapes: Shapes = {f"{at}conv1.weight": (384, 80, 3), f"{at}conv2.weight": (384, 384, 3)}
    shapes |= {f"{at}embed_positions.weight": (1500, 384), "model.decoder.embed_positions.weight": (448, 384)}
    shapes["model.decoder.embed_tokens.weight"] = (51865, 384)
    for side in ("encoder", "decoder"):
        for layer in range(4):
            at = f"model.{side}.layers.{layer}."
            for block in ["self_attn"] + ["encoder_attn"] * (side == "decoder"):
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    shapes |= linear(f"{at}{block}.{part}", 384, 384)
            shapes |= linear(f"{at}fc1", 1536, 384) | linear(f"{at}fc2", 384, 1536)
    return shapes


def modernbert() -> Shapes:
    shapes: Shapes = {"model.embeddings.tok_embeddings.weight": (50368, 768), "model.embeddings.norm.weight": (768,)}
    for layer in range(22):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}attn.Wqkv.weight": (2304, 768), f"{at}attn.Wo.weight": (768, 768)}
        shapes |= {f"{at}mlp.Wi.weight": (2304, 768), f"{at}mlp.Wo.weight": (768, 1152)}
    return shapes


def protein_mpnn() -> Shapes:
    shapes: Shapes = linear("features.embeddings.linear", 16, 66) | linear(
        "features.edge_embedding", 128, 416, bias=False
    )
    shapes |= norm("features.norm_edges", 128) | linear("W_e", 128, 128) | linear("W_out", 21, 128)
    shapes["W_s.weight"] = (21, 128)
    for side, messages, maps in (("encoder", 384, "W1 W2 W3 W11 W12 W13"), ("decoder", 512, "W1 W2 W3")):
        for layer in range(3):
            at = f"{side}_layers.{layer}."
            for name in maps.split():
                shapes |= linear(f"{at}{name}", 128, messages if name in {"W1", "W11"} else 128)
            shapes |= linear(f"{at}dense.W_in", 512, 128) | linear(f"{at}dense.W_out", 128, 512)
            shapes |= norm(f"{at}norm1", 128) | norm(f"{at}norm2", 128)
    return {f"model_state_dict.{name}": shape for name, shape in shapes.items()}


def architectures() -> Iterator[tuple[str, Shapes]]:
    """Every architecture that the tests lay out, by name."""
    yield "llama-3-8b", llama(32, 4096, 4096, 1024, 14336, 128256)
    yield "llama-2-7b", llama(32, 4096, 4096, 4096, 11008, 32000)
    yield "mistral-7b", llama(32, 4096, 4096, 1024, 14336, 32000)
    yield "qwen2.5-0.5b", llama(24, 896, 896, 128, 4864, 151936, tied=True, bias=True)
    yield "qwen3-0.6b", llama(28, 1024, 2048, 1024, 3072, 151936, tied=True, head=128)
    yield "qwen3-4b", llama(36, 2560, 4096, 1024, 9728, 151936, tied=True, head=128)
    yield "gemma-7b", llama(28, 3072, 4096, 4096, 24576, 256000, tied=True)
    yield "gemma-2-2b", llama(26, 2304, 2048, 1024, 9216, 256000, tied=True, four_norms=True)
    yield "gemma-2-9b", llama(42, 3584, 4096, 2048, 14336, 256000, tied=True, four_norms=True)
    yield "gemma-3-270m", llama(18, 640, 1024, 256, 2048, 262144, tied=True, head=256, four_norms=True)
    yield "smollm2-135m", llama(30, 576, 576, 192, 1536, 49152, tied=True)
    yield "tinyllama", llama(22, 2048, 2048, 256, 5632, 32000)
    yield "phi-3-mini", phi3()
    yield "phi-3-medium", phi3_medium()
    yield "phi-2", phi2()
    yield "gpt2", gpt2()
    yield "gpt2-medium", gpt2(24, 1024)
    yield "pythia-410m", neox()
    yield "gpt-j", gptj()
    yield "opt-125m", opt()
    yield "bloom-560m", bloom()
    yield "falcon-7b", falcon()
    yield "falcon-40b", falcon(8192, 9216, 60)
    yield "bert-base", bert()
    yield "minilm-l6", bert(6, 384, prefix="", head=False)
    yield "bert-small", bert(4, 512)
    yield "distilbert", distilbert()
    yield "t5-small", t5()
    yield "flan-t5-small", t5(512, 384, 6, 1024, gated=True)
    yield "t5-11b", t5(1024, 16384, 128, 65536)
    yield "vit-b16", vit()
    yield "timm-vit-b16", timm_vit()
    yield "clip-b32", clip()
    yield "siglip-base", clip(siglip=True)
    yield "mixtral", mixtral()
    yield "qwen1.5-moe", qwen_moe()
    yield "deepseek-v2-lite", deepseek_v2_lite()
    yield "deepseek-v3-short", deepseek_v3(8, 32)
    yield "gpt-oss-20b", gpt_oss()
    yield "gpt-oss-narrow", gpt_oss(4, 8, 2880, 1440)
    yield "qwen3-vl-moe", stacked_moe()
    yield "qwen3-vl-moe-out-in", stacked_moe(out_in=True)
    yield "llama-4-scout", llama4()
    yield "gguf-llama", gguf()
    yield "gguf-mixtral", gguf(moe=True)
    yield "llava", llava()
    yield "whisper-tiny", whisper()
    yield "modernbert", modernbert()
    yield "protein-mpnn", protein_mpnn()
