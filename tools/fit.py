"""Fine-tune a multimodal LLM and measure what it forgets: python tools/fit.py --config configs/scienceqa_lora.yaml."""

from mllm_lit.commands.fit import main

if __name__ == "__main__":
    main()
