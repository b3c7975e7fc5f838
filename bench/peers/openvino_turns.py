"""Runs OpenVINO's scaled_dot_product_attention in the comparison with attnd."""

import numpy
import openvino
from openvino import opset13

import turns

TYPES = {'f32': openvino.Type.f32, 'f16': openvino.Type.f16,
         'bf16': openvino.Type.bf16}
CORE = openvino.Core()


def prepare(case, folder):
  if case['backward']:
    raise turns.Refused('no gradients')
  if case['q_heads'] != case['kv_heads']:
    raise turns.Refused('no grouped heads')
  arrays = [x[numpy.newaxis] for x in turns.tensors(case, folder)]
  dtype = TYPES[case['dtype']]
  parameters = [opset13.parameter(list(x.shape), dtype) for x in arrays]
  attention = opset13.scaled_dot_product_attention(*parameters,
                                                   causal=case['causal'])
  model = openvino.Model([opset13.result(attention)], parameters)
  # By default, OpenVINO computes f32 in bf16 if that is faster.
  compiled = CORE.compile_model(model, 'CPU', {
      'INFERENCE_PRECISION_HINT': dtype,
      'INFERENCE_NUM_THREADS': 1,
      'NUM_STREAMS': 1,
      'ENABLE_CPU_PINNING': False,
      'PERFORMANCE_HINT': 'LATENCY',
  })
  request = compiled.create_infer_request()
  for i, x in enumerate(arrays):
    if case['dtype'] == 'bf16':
      tensor = openvino.Tensor(x, list(x.shape), openvino.Type.bf16)
    else:
      tensor = openvino.Tensor(x, shared_memory=True)
    request.set_input_tensor(i, tensor)

  def call(_held=arrays):  # OpenVINO shares their memory, but holds no reference
    request.infer()

  def answer():
    output = request.get_output_tensor(0).data
    if case['dtype'] == 'bf16':
      bits = output.view(numpy.uint16).astype(numpy.uint32) << 16
      return bits.view(numpy.float32)
    return output

  return call, answer


if __name__ == '__main__':
  turns.serve(openvino.__version__, prepare)
