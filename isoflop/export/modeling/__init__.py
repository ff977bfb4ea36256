"""The code that an export to Hugging Face contains if no architecture of transformers fits the model (own_code.py).

configuration_isoflop  config.json                   network_isoflop    the network, in torch alone
modeling_isoflop       the network for transformers  attention_isoflop  its attention and positions

The four files are copied unchanged: they import one another by relative imports, and nothing of isoflop. Nothing here
loads transformers unless `modeling_isoflop` or `configuration_isoflop` is imported, which isoflop itself never does.
"""
