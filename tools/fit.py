"""Fine-tune a multimodal LLM and measure what it forgets: python tools/fit.py --config configs/scienceqa_lora.yaml."""

from mllm_lit.allocator import start_again_with_joined_memory

if __name__ == "__main__":
    start_again_with_joined_memory()
    from mllm_lit.cli import main

    main()
