"""Contenders of a comparison in processes of their own: this engine, llama.cpp, and transformers under accelerate."""
