"""The model: cache keys from synthetic images beside a frozen CLIP. No federation, no crypto, no DP.

The story, in the order of the files:

``encoder``      a frozen CLIP through open_clip: images and class names to unit features
``encoder_files``  where its files lie; ``offline`` keeps the hub's library from the network
``generator``    stock diffusers pipelines, and ``class_conditional``; ``pipeline_files`` says where theirs may come from
``prompts``      what a text-to-image one is asked for
``synthesis``    images of each class from one; ``manifest`` says where each comes from and what became of it
``key_sources``  that, or pictures and features made elsewhere, or texts: candidates for cache keys
``selection``    which candidates become keys
``initial``      features of synthetic images become cache keys; ``origin`` says of what for as long as they live
``leave_one_out``  alpha and beta from that cache alone
``images``       a silo's own images, a folder a class; ``image_table`` the same from CSV or Parquet
``sources``      which of these a path is
``features``     the same, encoded once, shard by shard, in ``augmentation``'s views
``feature_set``  what comes of it; ``saved_features`` the same on disk
``feature_file``  features made elsewhere, a silo's or public ones
``model``        logits = logit_scale * W f + alpha * L^T exp(-beta (1 - F f)), and its rank-one gradient
``heads``        what of it is trained: every key, or one residual for all keys of a class
``class_statistics``  class sums and Gram matrix
``closed_form``  a linear head solved from them; ``released_sums``: what a cache keeps of them
``evaluate``     accuracy, with and without the cache
``tensor_file``  safetensors bytes with an exact schema, for cache and feature files alike

What needs more than torch, numpy, safetensors, msgspec and PIL (open_clip, diffusers, the hub's library, pyarrow)
imports it when called.
"""
