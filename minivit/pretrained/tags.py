"""The default tag of each published name: which of its weights a name without a tag means."""

# timm's default tag for each architecture: the first of its pretrained configurations that has weights.
# Source: timm 1.0.31, default_cfgs in timm/models/ of vision_transformer.py, deit.py, beit.py, eva.py,
# swin_transformer.py and swin_transformer_v2.py, read 2026-11-27. All are published as timm/<architecture>.<tag>; names
# with OpenAI's GELU are in the repositories of the names without it.
_TAGS = {
    "augreg2_in21k_ft_in1k": "vit_base_patch16_224 vit_base_patch8_224",
    "augreg_in21k_ft_in1k": """
        vit_tiny_patch16_224 vit_tiny_patch16_384 vit_small_patch32_224 vit_small_patch32_384
        vit_small_patch16_224 vit_small_patch16_384 vit_base_patch32_224 vit_base_patch32_384
        vit_base_patch16_384 vit_large_patch16_224 vit_large_patch16_384 vit_tiny_r_s16_p8_224
        vit_tiny_r_s16_p8_384 vit_small_r26_s32_224 vit_small_r26_s32_384 vit_large_r50_s32_224
        vit_large_r50_s32_384""",
    "orig_in21k_ft_in1k": "vit_large_patch32_384 vit_base_r50_s16_384",
    "orig_in21k": "vit_large_patch32_224 vit_huge_patch14_224 vit_base_r50_s16_224",
    "dino": "vit_small_patch8_224",
    "fb_in1k": """
        deit_tiny_patch16_224 deit_small_patch16_224 deit_base_patch16_224 deit_base_patch16_384
        deit_tiny_distilled_patch16_224 deit_small_distilled_patch16_224 deit_base_distilled_patch16_224
        deit_base_distilled_patch16_384 deit3_base_patch16_224 deit3_base_patch16_384 deit3_huge_patch14_224
        deit3_large_patch16_224 deit3_large_patch16_384 deit3_medium_patch16_224 deit3_small_patch16_224
        deit3_small_patch16_384""",
    "ms_in1k": """
        swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_tiny_window16_256 swinv2_small_window8_256
        swinv2_small_window16_256 swinv2_base_window8_256 swinv2_base_window16_256 swin_s3_tiny_224
        swin_s3_small_224 swin_s3_base_224""",
    "ms_in22k": "swinv2_base_window12_192 swinv2_large_window12_192",
    "ms_in22k_ft_in1k": """
        swin_small_patch4_window7_224 swin_base_patch4_window7_224 swin_base_patch4_window12_384
        swin_large_patch4_window7_224 swin_large_patch4_window12_384 swinv2_base_window12to16_192to256
        swinv2_base_window12to24_192to384 swinv2_large_window12to16_192to256 swinv2_large_window12to24_192to384""",
    "r160_in1k": "test_vit test_vit2 test_vit3",
    "sw_in1k": "vit_base_patch16_rpn_224",
    "1200ep_in1k": "flexivit_base flexivit_large flexivit_small",
    "apple_pt": """
        aimv2_1b_patch14_224 aimv2_1b_patch14_336 aimv2_1b_patch14_448 aimv2_3b_patch14_224 aimv2_3b_patch14_336
        aimv2_3b_patch14_448 aimv2_huge_patch14_224 aimv2_huge_patch14_336 aimv2_huge_patch14_448
        aimv2_large_patch14_224 aimv2_large_patch14_336 aimv2_large_patch14_448""",
    "c_radio": """
        vit_base_patch16_radio_v3 vit_giant_patch16_radio_v3 vit_huge_patch16_radio_v3 vit_huge_patch16_radio_v4
        vit_large_patch16_radio_v3 vit_so400m_patch16_radio_v4""",
    "datacompxl": "vit_base_patch32_clip_256",
    "dfn2b": "vit_large_patch14_clip_quickgelu_224",
    "dfn5b": "vit_huge_patch14_clip_378 vit_huge_patch14_clip_quickgelu_224 vit_huge_patch14_clip_quickgelu_378",
    "in21k": "vit_base_patch16_224_miil",
    "in22k_ft_in1k": "beit3_base_patch16_224 beit3_large_patch16_224",
    "laion2b": "vit_giant_patch14_clip_224 vit_gigantic_patch14_clip_224",
    "laion2b_ft_in12k_in1k": """
        vit_base_patch16_clip_224 vit_base_patch16_clip_384 vit_base_patch32_clip_224 vit_base_patch32_clip_384
        vit_base_patch32_clip_448 vit_huge_patch14_clip_224 vit_huge_patch14_clip_336 vit_large_patch14_clip_224
        vit_large_patch14_clip_336""",
    "laion400m_e32": "vit_base_patch16_plus_clip_240 vit_base_patch32_clip_quickgelu_224",
    "lvd142m": """
        vit_base_patch14_dinov2 vit_base_patch14_reg4_dinov2 vit_giant_patch14_dinov2
        vit_giant_patch14_reg4_dinov2 vit_large_patch14_dinov2 vit_large_patch14_reg4_dinov2
        vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2""",
    "lvd1689m": """
        vit_small_patch16_dinov3 vit_small_patch16_dinov3_qkvb vit_small_plus_patch16_dinov3
        vit_small_plus_patch16_dinov3_qkvb vit_base_patch16_dinov3 vit_base_patch16_dinov3_qkvb
        vit_large_patch16_dinov3 vit_large_patch16_dinov3_qkvb vit_huge_plus_patch16_dinov3
        vit_huge_plus_patch16_dinov3_qkvb vit_7b_patch16_dinov3""",
    "eupe_lvd1689m": "vit_tiny_patch16_dinov3_qkvb",
    "in22k_ft_in22k_in1k": """
        beit_base_patch16_224 beit_base_patch16_384 beit_large_patch16_224 beit_large_patch16_384
        beit_large_patch16_512 eva_large_patch14_196 eva_large_patch14_336""",
    "in1k_ft_in22k_in1k": "beitv2_base_patch16_224 beitv2_large_patch16_224",
    "metaclip2_worldwide": "vit_gigantic_patch14_clip_378",
    "metaclip_2pt5b": "vit_base_patch16_clip_quickgelu_224 vit_gigantic_patch14_clip_quickgelu_224",
    "ogvl_dist": "vit_intern300m_patch14_448",
    "openai": "vit_large_patch14_clip_quickgelu_336",
    "pali_mix": "vit_so400m_patch14_siglip_gap_448",
    "pali_pt": "vit_so400m_patch14_siglip_gap_896",
    "sbb2_e200_in12k_ft_in1k": """
        vit_betwixt_patch16_reg4_gap_256 vit_betwixt_patch16_reg4_gap_384 vit_mediumd_patch16_reg4_gap_256
        vit_mediumd_patch16_reg4_gap_384""",
    "sbb_e200_in12k_ft_in1k": """
        vit_so150m2_patch16_reg1_gap_256 vit_so150m2_patch16_reg1_gap_384 vit_so150m2_patch16_reg1_gap_448""",
    "sbb_e250_in12k_ft_in1k": "vit_so150m_patch16_reg4_gap_256 vit_so150m_patch16_reg4_gap_384",
    "sbb_in12k_ft_in1k": "vit_little_patch16_reg1_gap_256 vit_medium_patch16_reg4_gap_256",
    "sbb_in1k": """
        vit_betwixt_patch16_reg1_gap_256 vit_little_patch16_reg4_gap_256 vit_medium_patch16_reg1_gap_256
        vit_pwee_patch16_reg1_gap_256 vit_wee_patch16_reg1_gap_256""",
    "sbb_nadamuon_in1k": """
        vit_dlittle_patch16_reg1_gap_256 vit_dpwee_patch16_reg1_gap_256 vit_dwee_patch16_reg1_gap_256""",
    "sw_in12k": "vit_medium_patch16_gap_240",
    "sw_in12k_ft_in1k": "vit_medium_patch16_gap_256 vit_medium_patch16_gap_384",
    "tinyclip_laion400m": "vit_betwixt_patch32_clip_224 vit_medium_patch32_clip_224",
    "tinyclip_yfcc15m": "vit_medium_patch16_clip_224 vit_xsmall_patch16_clip_224",
    "v2_webli": """
        vit_base_patch16_siglip_224 vit_base_patch16_siglip_256 vit_base_patch16_siglip_384
        vit_base_patch16_siglip_512 vit_base_patch16_siglip_gap_224 vit_base_patch16_siglip_gap_256
        vit_base_patch16_siglip_gap_384 vit_base_patch16_siglip_gap_512 vit_base_patch32_siglip_256
        vit_base_patch32_siglip_gap_256 vit_giantopt_patch16_siglip_256 vit_giantopt_patch16_siglip_384
        vit_giantopt_patch16_siglip_gap_256 vit_giantopt_patch16_siglip_gap_384 vit_large_patch16_siglip_256
        vit_large_patch16_siglip_384 vit_large_patch16_siglip_512 vit_large_patch16_siglip_gap_256
        vit_large_patch16_siglip_gap_384 vit_large_patch16_siglip_gap_512 vit_so400m_patch14_siglip_224
        vit_so400m_patch14_siglip_378 vit_so400m_patch14_siglip_gap_224 vit_so400m_patch14_siglip_gap_378
        vit_so400m_patch16_siglip_256 vit_so400m_patch16_siglip_384 vit_so400m_patch16_siglip_512
        vit_so400m_patch16_siglip_gap_256 vit_so400m_patch16_siglip_gap_384 vit_so400m_patch16_siglip_gap_512""",
    "webli": """
        vit_base_patch14_reg1_tipsv2 vit_giant_patch14_reg1_tipsv2 vit_large_patch14_reg1_tipsv2
        vit_so400m_patch14_reg1_tipsv2 vit_so400m_patch14_siglip_384 vit_so400m_patch14_siglip_gap_384""",
}
DEFAULT_TAGS = {name: tag for tag, names in _TAGS.items() for name in names.split()}
