"""Runs PyTorch's scaled_dot_product_attention in the comparison with attnd."""

import torch
from torch.nn import functional

import turns

DTYPES = {'f32': torch.float32, 'f16': torch.float16, 'bf16': torch.bfloat16}


def prepare(case, folder):
  dtype = DTYPES[case['dtype']]

  def tensor(array):
    return torch.from_numpy(array).view(dtype).unsqueeze(0)

  q, k, v = (tensor(array) for array in turns.tensors(case, folder))
  options = {'is_causal': case['causal'],
             'enable_gqa': case['q_heads'] != case['kv_heads']}
  result = {}
  if case['backward']:
    grad = tensor(turns.load(folder, 'grad_output', case['dtype'],
                             tuple(q.shape[1:])))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    output = functional.scaled_dot_product_attention(*inputs, **options)

    def call():
      result['answer'] = torch.autograd.grad(output, inputs, grad,
                                             retain_graph=True)
  else:
    def call():
      with torch.inference_mode():
        result['answer'] = (functional.scaled_dot_product_attention(
            q, k, v, **options),)

  def answer():
    return torch.cat([x.float().flatten() for x in result['answer']]).numpy()

  return call, answer


if __name__ == '__main__':
  torch.set_num_threads(1)
  turns.serve(torch.__version__, prepare)
