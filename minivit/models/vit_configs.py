"""The published sizes of ViT under timm's names: what each family changed, and each name's size, patch and image.

Sources: Dosovitskiy et al. 2021, table 1 (ViT and hybrids), Touvron et al. 2021 (DeiT), the papers beside each family,
and timm 1.0.31, whose names these are.
"""

from __future__ import annotations

from typing import Any

from minivit.models.vit import ViT

_TINY = {"embed_dim": 192, "depth": 12, "num_heads": 3}
_SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6}
_BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}
_LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
_HUGE = {"embed_dim": 1280, "depth": 32, "num_heads": 16}
_GIANT = {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 4.363636363636363}
_GIANT_BEIT3 = {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 4.3637}
_GIGANTIC = {"embed_dim": 1664, "depth": 48, "num_heads": 16, "mlp_ratio": 4.923076923076923}
_MEDIUM = {"embed_dim": 512, "depth": 12, "num_heads": 8}
_BETWIXT = {"embed_dim": 640, "depth": 12, "num_heads": 10}
_PLUS = {"embed_dim": 896, "depth": 12, "num_heads": 14}
_LITTLE = {"embed_dim": 320, "depth": 14, "num_heads": 5, "mlp_ratio": 5.6}
_WEE = {"embed_dim": 256, "depth": 14, "num_heads": 4, "mlp_ratio": 5.0}
_PWEE = {"embed_dim": 256, "depth": 16, "num_heads": 4, "mlp_ratio": 5.0}
_MEDIUM_DEEP = {"embed_dim": 512, "depth": 20, "num_heads": 8}
_SO150M = {"embed_dim": 896, "depth": 18, "num_heads": 14, "mlp_ratio": 2.572}
_SO150M2 = {"embed_dim": 832, "depth": 21, "num_heads": 13, "mlp_ratio": 2.6153846153846154}
_SO400M = {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362}
_SO400M_4304 = {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.736111111111111}
_GIANT_OPT = {"embed_dim": 1536, "depth": 40, "num_heads": 16}
_GIANT_DINO = {"embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 5.33334}
_AIM_LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 8, "mlp_ratio": 2.75}
_AIM_HUGE = {"embed_dim": 1536, "depth": 24, "num_heads": 12, "mlp_ratio": 2.6667}
_AIM_1B = {"embed_dim": 2048, "depth": 24, "num_heads": 16, "mlp_ratio": 2.75}
_AIM_3B = {"embed_dim": 3072, "depth": 24, "num_heads": 24, "mlp_ratio": 2.6667}
_HUGE_20 = {**_HUGE, "num_heads": 20}
_7B = {"embed_dim": 4096, "depth": 40, "num_heads": 32, "mlp_ratio": 2.0}
_R26, _R50 = (2, 2, 2, 2), (3, 4, 6, 3)  # stages of bottlenecks

# what a family changed
_RPN = {"class_token": False, "global_pool": "avg", "qkv_bias": False, "post_norm": True}
_CLIP = {"norm_eps": 1e-5, "pre_norm": True}
_OPENAI = {"gelu": "quick", "norm_eps": 1e-5, "pre_norm": True}
_SIGLIP = {"class_token": False, "global_pool": "map"}
_GAP = {"class_token": False, "fc_norm": False, "global_pool": "avg"}
_DEIT3 = {"init_values": 1e-6, "no_embed_class": True}
_DINOV2 = {"init_values": 1e-5}
_DINOV2_REG = {"init_values": 1e-5, "no_embed_class": True, "reg_tokens": 4}
_TIPS = {"init_values": 1.0, "no_embed_class": True, "reg_tokens": 1}
_RADIO = {"final_norm": False, "no_embed_class": True, "reg_tokens": 7}
_REG1 = {"class_token": False, "global_pool": "avg", "init_values": 1e-5, "no_embed_class": True, "reg_tokens": 1}
_REG4 = {"class_token": False, "global_pool": "avg", "init_values": 1e-5, "no_embed_class": True, "reg_tokens": 4}
_SCALED_GAP = {"class_token": False, "fc_norm": False, "global_pool": "avg", "init_values": 1e-6, "qkv_bias": False}
_AIM = {
    "class_token": False,
    "fc_norm": False,
    "global_pool": "avg",
    "mlp_layer": "swiglu",
    "norm_eps": 1e-5,
    "norm_layer": "rmsnorm",
    "patch_norm": True,
    "proj_bias": False,
    "qkv_bias": False,
}
_BEIT3 = {"global_pool": "avg", "norm_eps": 1e-5, "scale_attn_norm": True, "scale_mlp_norm": True}
_BEIT = {"global_pool": "avg", "pos_embed": "relative", "qkv_bias": "qv"}
_DINOV3 = {
    "global_pool": "avg",
    "fc_norm": False,
    "pos_embed": "rotary",
    "reg_tokens": 4,
    "init_values": 1e-5,
    "norm_eps": 1e-5,
    "dynamic_img_size": True,
}
_RMS = {"norm_layer": "rmsnorm", "qkv_bias": False}
_XP = {**_RMS, "block_fn": "parallel_scaling", "no_embed_class": True, "pre_norm": True, "qk_norm": True}


def _vit(size: dict[str, Any], patch: int, image: int, **more: Any) -> tuple[type[ViT], dict[str, Any]]:
    return ViT, {**size, "patch_size": patch, "img_size": image, **more}


VITS: dict[str, tuple[type[ViT], dict[str, Any]]] = {
    # the first ViT (Dosovitskiy et al. 2021), also without a class token, and FlexiViT (Beyer et al. 2022)
    "vit_tiny_patch16_224": _vit(_TINY, 16, 224),
    "vit_tiny_patch16_384": _vit(_TINY, 16, 384),
    "vit_small_patch32_224": _vit(_SMALL, 32, 224),
    "vit_small_patch32_384": _vit(_SMALL, 32, 384),
    "vit_small_patch16_224": _vit(_SMALL, 16, 224),
    "vit_small_patch16_384": _vit(_SMALL, 16, 384),
    "vit_small_patch8_224": _vit(_SMALL, 8, 224),
    "vit_base_patch32_224": _vit(_BASE, 32, 224),
    "vit_base_patch32_384": _vit(_BASE, 32, 384),
    "vit_base_patch16_224": _vit(_BASE, 16, 224),
    "vit_base_patch16_384": _vit(_BASE, 16, 384),
    "vit_base_patch16_gap_224": _vit({**_BASE, "num_heads": 16}, 16, 224, **_GAP),
    "vit_base_patch16_rpn_224": _vit(_BASE, 16, 224, **_RPN),
    "vit_base_patch8_224": _vit(_BASE, 8, 224),
    "vit_large_patch32_224": _vit(_LARGE, 32, 224),
    "vit_large_patch32_384": _vit(_LARGE, 32, 384),
    "vit_large_patch16_224": _vit(_LARGE, 16, 224),
    "vit_large_patch16_384": _vit(_LARGE, 16, 384),
    "vit_large_patch14_224": _vit(_LARGE, 14, 224),
    "vit_huge_patch14_224": _vit(_HUGE, 14, 224),
    "flexivit_base": _vit(_BASE, 16, 240, no_embed_class=True),
    "flexivit_large": _vit(_LARGE, 16, 240, no_embed_class=True),
    "flexivit_small": _vit(_SMALL, 16, 240, no_embed_class=True),
    "vit_base_patch16_224_miil": _vit(_BASE, 16, 224, qkv_bias=False),
    "vit_base_patch16_plus_240": _vit(_PLUS, 16, 240, init_values=1e-5),
    "vit_base_patch32_plus_256": _vit(_PLUS, 32, 256, init_values=1e-5),
    "vit_betwixt_patch16_gap_256": _vit(_BETWIXT, 16, 256, **_SCALED_GAP),
    "vit_giant_patch14_224": _vit(_GIANT, 14, 224),
    "vit_giant_patch16_gap_224": _vit(_GIANT, 16, 224, **_GAP),
    "vit_gigantic_patch14_224": _vit(_GIGANTIC, 14, 224),
    "vit_huge_patch14_gap_224": _vit(_HUGE, 14, 224, **_GAP),
    "vit_huge_patch16_gap_448": _vit(_HUGE, 16, 448, **_GAP),
    "vit_medium_patch16_gap_240": _vit(_MEDIUM, 16, 240, **_SCALED_GAP),
    "vit_medium_patch16_gap_256": _vit(_MEDIUM, 16, 256, **_SCALED_GAP),
    "vit_medium_patch16_gap_384": _vit(_MEDIUM, 16, 384, **_SCALED_GAP),
    # hybrids: a ResNet's stem
    "vit_tiny_r_s16_p8_224": _vit(_TINY, 8, 224, resnet_layers=()),
    "vit_tiny_r_s16_p8_384": _vit(_TINY, 8, 384, resnet_layers=()),
    "vit_small_r26_s32_224": _vit(_SMALL, 1, 224, resnet_layers=_R26),
    "vit_small_r26_s32_384": _vit(_SMALL, 1, 384, resnet_layers=_R26),
    "vit_base_r26_s32_224": _vit(_BASE, 1, 224, resnet_layers=_R26),
    # R50's blocks in three stages, with a total stride of 16: Dosovitskiy et al. 2021, section 4.1
    "vit_base_r50_s16_224": _vit(_BASE, 1, 224, resnet_layers=(3, 4, 9)),
    "vit_base_r50_s16_384": _vit(_BASE, 1, 384, resnet_layers=(3, 4, 9)),
    "vit_large_r50_s32_224": _vit(_LARGE, 1, 224, resnet_layers=_R50),
    "vit_large_r50_s32_384": _vit(_LARGE, 1, 384, resnet_layers=_R50),
    # DeiT (Touvron et al. 2021)
    "deit_tiny_patch16_224": _vit(_TINY, 16, 224),
    "deit_small_patch16_224": _vit(_SMALL, 16, 224),
    "deit_base_patch16_224": _vit(_BASE, 16, 224),
    "deit_base_patch16_384": _vit(_BASE, 16, 384),
    "deit_tiny_distilled_patch16_224": _vit(_TINY, 16, 224, distilled=True),
    "deit_small_distilled_patch16_224": _vit(_SMALL, 16, 224, distilled=True),
    "deit_base_distilled_patch16_224": _vit(_BASE, 16, 224, distilled=True),
    "deit_base_distilled_patch16_384": _vit(_BASE, 16, 384, distilled=True),
    # DeiT III (Touvron et al. 2022): LayerScale, no position for the class token
    "deit3_base_patch16_224": _vit(_BASE, 16, 224, **_DEIT3),
    "deit3_base_patch16_384": _vit(_BASE, 16, 384, **_DEIT3),
    "deit3_huge_patch14_224": _vit(_HUGE, 14, 224, **_DEIT3),
    "deit3_large_patch16_224": _vit(_LARGE, 16, 224, **_DEIT3),
    "deit3_large_patch16_384": _vit(_LARGE, 16, 384, **_DEIT3),
    "deit3_medium_patch16_224": _vit(_MEDIUM, 16, 224, **_DEIT3),
    "deit3_small_patch16_224": _vit(_SMALL, 16, 224, **_DEIT3),
    "deit3_small_patch16_384": _vit(_SMALL, 16, 384, **_DEIT3),
    # the image towers of CLIP (Radford et al. 2021), OpenCLIP, MetaCLIP and DFN: a norm before the blocks
    "vit_base_patch16_clip_224": _vit(_BASE, 16, 224, **_CLIP),
    "vit_base_patch16_clip_384": _vit(_BASE, 16, 384, **_CLIP),
    "vit_base_patch16_clip_quickgelu_224": _vit(_BASE, 16, 224, **_OPENAI),
    "vit_base_patch16_plus_clip_240": _vit(_PLUS, 16, 240, **_CLIP),
    "vit_base_patch32_clip_224": _vit(_BASE, 32, 224, **_CLIP),
    "vit_base_patch32_clip_256": _vit(_BASE, 32, 256, **_CLIP),
    "vit_base_patch32_clip_384": _vit(_BASE, 32, 384, **_CLIP),
    "vit_base_patch32_clip_448": _vit(_BASE, 32, 448, **_CLIP),
    "vit_base_patch32_clip_quickgelu_224": _vit(_BASE, 32, 224, **_OPENAI),
    "vit_betwixt_patch32_clip_224": _vit(_BETWIXT, 32, 224, **_CLIP),
    "vit_giant_patch14_clip_224": _vit(_GIANT, 14, 224, **_CLIP),
    "vit_gigantic_patch14_clip_224": _vit(_GIGANTIC, 14, 224, **_CLIP),
    "vit_gigantic_patch14_clip_378": _vit(_GIGANTIC, 14, 378, **_CLIP),
    "vit_gigantic_patch14_clip_quickgelu_224": _vit(_GIGANTIC, 14, 224, **_OPENAI),
    "vit_huge_patch14_clip_224": _vit(_HUGE, 14, 224, **_CLIP),
    "vit_huge_patch14_clip_336": _vit(_HUGE, 14, 336, **_CLIP),
    "vit_huge_patch14_clip_378": _vit(_HUGE, 14, 378, **_CLIP),
    "vit_huge_patch14_clip_quickgelu_224": _vit(_HUGE, 14, 224, **_OPENAI),
    "vit_huge_patch14_clip_quickgelu_378": _vit(_HUGE, 14, 378, **_OPENAI),
    "vit_large_patch14_clip_224": _vit(_LARGE, 14, 224, **_CLIP),
    "vit_large_patch14_clip_336": _vit(_LARGE, 14, 336, **_CLIP),
    "vit_large_patch14_clip_quickgelu_224": _vit(_LARGE, 14, 224, **_OPENAI),
    "vit_large_patch14_clip_quickgelu_336": _vit(_LARGE, 14, 336, **_OPENAI),
    "vit_medium_patch16_clip_224": _vit(_MEDIUM, 16, 224, **_CLIP),
    "vit_medium_patch32_clip_224": _vit(_MEDIUM, 32, 224, **_CLIP),
    "vit_xsmall_patch16_clip_224": _vit({"embed_dim": 256, "depth": 10, "num_heads": 4}, 16, 224, **_CLIP),
    # SigLIP 1 and 2 (Zhai et al. 2023): attention pooling; "gap" is without it
    "vit_base_patch16_siglip_224": _vit(_BASE, 16, 224, **_SIGLIP),
    "vit_base_patch16_siglip_256": _vit(_BASE, 16, 256, **_SIGLIP),
    "vit_base_patch16_siglip_384": _vit(_BASE, 16, 384, **_SIGLIP),
    "vit_base_patch16_siglip_512": _vit(_BASE, 16, 512, **_SIGLIP),
    "vit_base_patch16_siglip_gap_224": _vit(_BASE, 16, 224, **_GAP),
    "vit_base_patch16_siglip_gap_256": _vit(_BASE, 16, 256, **_GAP),
    "vit_base_patch16_siglip_gap_384": _vit(_BASE, 16, 384, **_GAP),
    "vit_base_patch16_siglip_gap_512": _vit(_BASE, 16, 512, **_GAP),
    "vit_base_patch32_siglip_256": _vit(_BASE, 32, 256, **_SIGLIP, gelu="tanh"),
    "vit_base_patch32_siglip_gap_256": _vit(_BASE, 32, 256, **_GAP, gelu="tanh"),
    "vit_giantopt_patch16_siglip_256": _vit(_GIANT_OPT, 16, 256, **_SIGLIP, gelu="tanh"),
    "vit_giantopt_patch16_siglip_384": _vit(_GIANT_OPT, 16, 384, **_SIGLIP, gelu="tanh"),
    "vit_giantopt_patch16_siglip_gap_256": _vit(_GIANT_OPT, 16, 256, **_GAP, gelu="tanh"),
    "vit_giantopt_patch16_siglip_gap_384": _vit(_GIANT_OPT, 16, 384, **_GAP, gelu="tanh"),
    "vit_large_patch16_siglip_256": _vit(_LARGE, 16, 256, **_SIGLIP),
    "vit_large_patch16_siglip_384": _vit(_LARGE, 16, 384, **_SIGLIP),
    "vit_large_patch16_siglip_512": _vit(_LARGE, 16, 512, **_SIGLIP, gelu="tanh"),
    "vit_large_patch16_siglip_gap_256": _vit(_LARGE, 16, 256, **_GAP),
    "vit_large_patch16_siglip_gap_384": _vit(_LARGE, 16, 384, **_GAP),
    "vit_large_patch16_siglip_gap_512": _vit(_LARGE, 16, 512, **_GAP, gelu="tanh"),
    "vit_so400m_patch14_siglip_224": _vit(_SO400M, 14, 224, **_SIGLIP),
    "vit_so400m_patch14_siglip_378": _vit(_SO400M, 14, 378, **_SIGLIP),
    "vit_so400m_patch14_siglip_384": _vit(_SO400M, 14, 384, **_SIGLIP, partial_patches="drop"),
    "vit_so400m_patch14_siglip_gap_224": _vit(_SO400M, 14, 224, **_GAP),
    "vit_so400m_patch14_siglip_gap_378": _vit(_SO400M, 14, 378, **_GAP),
    "vit_so400m_patch14_siglip_gap_384": _vit(_SO400M, 14, 384, **_GAP, partial_patches="drop"),
    "vit_so400m_patch14_siglip_gap_448": _vit(_SO400M, 14, 448, **_GAP),
    "vit_so400m_patch14_siglip_gap_896": _vit(_SO400M, 14, 896, **_GAP),
    "vit_so400m_patch16_siglip_256": _vit(_SO400M, 16, 256, **_SIGLIP, gelu="tanh"),
    "vit_so400m_patch16_siglip_384": _vit(_SO400M, 16, 384, **_SIGLIP, gelu="tanh"),
    "vit_so400m_patch16_siglip_512": _vit(_SO400M, 16, 512, **_SIGLIP, gelu="tanh"),
    "vit_so400m_patch16_siglip_gap_256": _vit(_SO400M, 16, 256, **_GAP, gelu="tanh"),
    "vit_so400m_patch16_siglip_gap_384": _vit(_SO400M, 16, 384, **_GAP, gelu="tanh"),
    "vit_so400m_patch16_siglip_gap_512": _vit(_SO400M, 16, 512, **_GAP, gelu="tanh"),
    # DINOv2 (Oquab et al. 2023), and with registers (Darcet et al. 2024)
    "vit_base_patch14_dinov2": _vit(_BASE, 14, 518, **_DINOV2),
    "vit_base_patch14_reg4_dinov2": _vit(_BASE, 14, 518, **_DINOV2_REG),
    "vit_giant_patch14_dinov2": _vit(_GIANT_DINO, 14, 518, **_DINOV2, mlp_layer="swiglu_packed"),
    "vit_giant_patch14_reg4_dinov2": _vit(_GIANT_DINO, 14, 518, **_DINOV2_REG, mlp_layer="swiglu_packed"),
    "vit_large_patch14_dinov2": _vit(_LARGE, 14, 518, **_DINOV2),
    "vit_large_patch14_reg4_dinov2": _vit(_LARGE, 14, 518, **_DINOV2_REG),
    "vit_small_patch14_dinov2": _vit(_SMALL, 14, 518, **_DINOV2),
    "vit_small_patch14_reg4_dinov2": _vit(_SMALL, 14, 518, **_DINOV2_REG),
    # DINOv3 (Siméoni et al. 2025): rotary positions; "qkvb" has biases of q and v
    "vit_tiny_patch16_dinov3_qkvb": _vit(_TINY, 16, 256, **_DINOV3, qkv_bias="qv"),
    "vit_small_patch16_dinov3": _vit(_SMALL, 16, 256, **_DINOV3, qkv_bias=False),
    "vit_small_patch16_dinov3_qkvb": _vit(_SMALL, 16, 256, **_DINOV3, qkv_bias="qv"),
    "vit_small_plus_patch16_dinov3": _vit(_SMALL, 16, 256, **_DINOV3, qkv_bias=False, mlp_layer="swiglu"),
    "vit_small_plus_patch16_dinov3_qkvb": _vit(_SMALL, 16, 256, **_DINOV3, qkv_bias="qv", mlp_layer="swiglu"),
    "vit_base_patch16_dinov3": _vit(_BASE, 16, 256, **_DINOV3, qkv_bias=False),
    "vit_base_patch16_dinov3_qkvb": _vit(_BASE, 16, 256, **_DINOV3, qkv_bias="qv"),
    "vit_large_patch16_dinov3": _vit(_LARGE, 16, 256, **_DINOV3, qkv_bias=False),
    "vit_large_patch16_dinov3_qkvb": _vit(_LARGE, 16, 256, **_DINOV3, qkv_bias="qv"),
    "vit_huge_plus_patch16_dinov3": _vit(_HUGE_20, 16, 256, **_DINOV3, qkv_bias=False, mlp_layer="swiglu"),
    "vit_huge_plus_patch16_dinov3_qkvb": _vit(_HUGE_20, 16, 256, **_DINOV3, qkv_bias="qv", mlp_layer="swiglu"),
    "vit_7b_patch16_dinov3": _vit(_7B, 16, 256, **_DINOV3, qkv_bias=False, mlp_layer="swiglu"),
    # BEiT 1 and 2 (Bao et al. 2021; Peng et al. 2022): relative positions
    "beit_base_patch16_224": _vit(_BASE, 16, 224, **_BEIT, init_values=0.1),
    "beit_base_patch16_384": _vit(_BASE, 16, 384, **_BEIT, init_values=0.1),
    "beit_large_patch16_224": _vit(_LARGE, 16, 224, **_BEIT, init_values=1e-5),
    "beit_large_patch16_384": _vit(_LARGE, 16, 384, **_BEIT, init_values=1e-5),
    "beit_large_patch16_512": _vit(_LARGE, 16, 512, **_BEIT, init_values=1e-5),
    "beitv2_base_patch16_224": _vit(_BASE, 16, 224, **_BEIT, init_values=1e-5),
    "beitv2_large_patch16_224": _vit(_LARGE, 16, 224, **_BEIT, init_values=1e-5),
    # TIPSv2
    "vit_base_patch14_reg1_tipsv2": _vit(_BASE, 14, 448, **_TIPS),
    "vit_giant_patch14_reg1_tipsv2": _vit(_GIANT_DINO, 14, 448, **_TIPS, mlp_layer="swiglu_packed"),
    "vit_large_patch14_reg1_tipsv2": _vit(_LARGE, 14, 448, **_TIPS),
    "vit_so400m_patch14_reg1_tipsv2": _vit(_SO400M_4304, 14, 448, **_TIPS),
    # RADIO (Ranzinger et al. 2024) and InternViT: no last norm
    "vit_base_patch16_radio_v3": _vit(_BASE, 16, 512, **_RADIO, init_values=1e-5),
    "vit_giant_patch16_radio_v3": _vit({"embed_dim": 1536, "depth": 40, "num_heads": 24}, 16, 512, **_RADIO),
    "vit_huge_patch16_radio_v3": _vit(_HUGE, 16, 512, **_RADIO),
    "vit_huge_patch16_radio_v4": _vit(_HUGE, 16, 512, **{**_RADIO, "reg_tokens": 9}),
    "vit_intern300m_patch14_448": _vit(_LARGE, 14, 448, init_values=0.1, final_norm=False, dynamic_img_size=True),
    "vit_large_patch16_radio_v3": _vit(_LARGE, 16, 512, **_RADIO, init_values=1e-5),
    "vit_so400m_patch16_radio_v4": _vit(_SO400M_4304, 16, 512, **{**_RADIO, "reg_tokens": 9}),
    # AIMv2 (Fini et al. 2024): RMSNorm, SwiGLU, no biases
    "aimv2_1b_patch14_224": _vit(_AIM_1B, 14, 224, **_AIM),
    "aimv2_1b_patch14_336": _vit(_AIM_1B, 14, 336, **_AIM),
    "aimv2_1b_patch14_448": _vit(_AIM_1B, 14, 448, **_AIM),
    "aimv2_3b_patch14_224": _vit(_AIM_3B, 14, 224, **_AIM),
    "aimv2_3b_patch14_336": _vit(_AIM_3B, 14, 336, **_AIM),
    "aimv2_3b_patch14_448": _vit(_AIM_3B, 14, 448, **_AIM),
    "aimv2_huge_patch14_224": _vit(_AIM_HUGE, 14, 224, **_AIM),
    "aimv2_huge_patch14_336": _vit(_AIM_HUGE, 14, 336, **_AIM),
    "aimv2_huge_patch14_448": _vit(_AIM_HUGE, 14, 448, **_AIM),
    "aimv2_large_patch14_224": _vit(_AIM_LARGE, 14, 224, **_AIM),
    "aimv2_large_patch14_336": _vit(_AIM_LARGE, 14, 336, **_AIM),
    "aimv2_large_patch14_448": _vit(_AIM_LARGE, 14, 448, **_AIM),
    # BEiT-3 (Wang et al. 2022): norms within the branches; EVA's large ViT
    "beit3_base_patch16_224": _vit(_BASE, 16, 224, **_BEIT3),
    "beit3_giant_patch14_224": _vit(_GIANT_BEIT3, 14, 224, **_BEIT3),
    "beit3_giant_patch14_336": _vit(_GIANT_BEIT3, 14, 336, **_BEIT3),
    "beit3_large_patch16_224": _vit(_LARGE, 16, 224, **_BEIT3),
    "eva_large_patch14_196": _vit(_LARGE, 14, 196, global_pool="avg"),
    "eva_large_patch14_336": _vit(_LARGE, 14, 336, global_pool="avg"),
    # timm's own: registers, LayerScale and mean pooling; differential attention ("d")
    "vit_base_patch16_reg4_gap_256": _vit(
        _BASE, 16, 256, class_token=False, no_embed_class=True, global_pool="avg", reg_tokens=4
    ),
    "vit_betwixt_patch16_reg1_gap_256": _vit(_BETWIXT, 16, 256, **_REG1),
    "vit_betwixt_patch16_reg4_gap_256": _vit(_BETWIXT, 16, 256, **_REG4),
    "vit_betwixt_patch16_reg4_gap_384": _vit(_BETWIXT, 16, 384, **_REG4),
    "vit_dlittle_patch16_reg1_gap_256": _vit(_LITTLE, 16, 256, **_REG1, attn_layer="diff"),
    "vit_dpwee_patch16_reg1_gap_256": _vit(_PWEE, 16, 256, **_REG1, block_fn="diff_parallel_scaling"),
    "vit_dwee_patch16_reg1_gap_256": _vit(_WEE, 16, 256, **_REG1, attn_layer="diff"),
    "vit_little_patch16_reg1_gap_256": _vit(_LITTLE, 16, 256, **_REG1),
    "vit_little_patch16_reg4_gap_256": _vit(_LITTLE, 16, 256, **_REG4),
    "vit_medium_patch16_reg1_gap_256": _vit(_MEDIUM, 16, 256, **_REG1),
    "vit_medium_patch16_reg4_gap_256": _vit(_MEDIUM, 16, 256, **_REG4),
    "vit_mediumd_patch16_reg4_gap_256": _vit(_MEDIUM_DEEP, 16, 256, **_REG4),
    "vit_mediumd_patch16_reg4_gap_384": _vit(_MEDIUM_DEEP, 16, 384, **_REG4),
    "vit_pwee_patch16_reg1_gap_256": _vit(_PWEE, 16, 256, **_REG1, block_fn="parallel_scaling"),
    "vit_so150m2_patch16_reg1_gap_256": _vit(
        _SO150M2, 16, 256, init_values=1e-5, qkv_bias=False, class_token=False, reg_tokens=1, global_pool="avg"
    ),
    "vit_so150m2_patch16_reg1_gap_384": _vit(
        _SO150M2, 16, 384, init_values=1e-5, qkv_bias=False, class_token=False, reg_tokens=1, global_pool="avg"
    ),
    "vit_so150m2_patch16_reg1_gap_448": _vit(
        _SO150M2, 16, 448, init_values=1e-5, qkv_bias=False, class_token=False, reg_tokens=1, global_pool="avg"
    ),
    "vit_so150m_patch16_reg4_gap_256": _vit(_SO150M, 16, 256, **_GAP, reg_tokens=4),
    "vit_so150m_patch16_reg4_gap_384": _vit(_SO150M, 16, 384, **_GAP, reg_tokens=4),
    "vit_so150m_patch16_reg4_map_256": _vit(_SO150M, 16, 256, **_SIGLIP, reg_tokens=4),
    "vit_wee_patch16_reg1_gap_256": _vit(_WEE, 16, 256, **_REG1),
    # blocks with branches in parallel (Touvron et al. 2022; Dehghani et al. 2023), and the deep ViT beside them
    "vit_base_patch16_18x2_224": _vit({**_BASE, "depth": 18}, 16, 224, init_values=1e-5, block_fn="parallel_things"),
    "vit_base_patch16_xp_224": _vit(_BASE, 16, 224, **_XP),
    "vit_huge_patch14_xp_224": _vit(_HUGE, 14, 224, **_XP),
    "vit_large_patch14_xp_224": _vit(_LARGE, 14, 224, **_XP),
    "vit_small_patch16_18x2_224": _vit({**_SMALL, "depth": 18}, 16, 224, init_values=1e-5, block_fn="parallel_things"),
    "vit_small_patch16_36x1_224": _vit({**_SMALL, "depth": 36}, 16, 224, init_values=1e-5),
    # timm's smallest, made for tests
    "test_vit": _vit({"embed_dim": 64, "depth": 6, "num_heads": 2, "mlp_ratio": 3.0}, 16, 160, dynamic_img_size=True),
    "test_vit2": _vit(
        {"embed_dim": 64, "depth": 8, "num_heads": 2, "mlp_ratio": 3.0},
        16,
        160,
        init_values=1e-5,
        class_token=False,
        reg_tokens=1,
        global_pool="avg",
        dynamic_img_size=True,
    ),
    "test_vit3": _vit(
        {"embed_dim": 96, "depth": 9, "num_heads": 3, "mlp_ratio": 2.0},
        16,
        160,
        **_SIGLIP,
        reg_tokens=1,
        pool_include_prefix=True,
        init_values=1e-5,
    ),
    "test_vit4": _vit(
        {"embed_dim": 96, "depth": 9, "num_heads": 3, "mlp_ratio": 3.0},
        16,
        160,
        init_values=1e-5,
        class_token=False,
        reg_tokens=1,
        global_pool="avg",
        dynamic_img_size=True,
        norm_layer="rmsnorm",
    ),
}
