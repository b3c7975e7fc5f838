"""Runs ONNX Runtime in the comparison with attnd. The argument selects the
operator: `MultiHeadAttention`, or `Attention` of ONNX opset 23."""

import sys

import numpy
import onnx
from onnx import helper
import onnxruntime

import turns

TYPES = {'f32': onnx.TensorProto.FLOAT, 'f16': onnx.TensorProto.FLOAT16}


def prepare(operator, case, folder):
  """Both operators take [batch, rows, heads * head_dim], so the tensors are
  put into this layout beforehand."""
  if case['backward']:
    raise turns.Refused('no gradients')
  if case['dtype'] not in TYPES:
    raise turns.Refused(f'no {case["dtype"]} on CPUs')
  grouped = case['q_heads'] != case['kv_heads']
  if operator == 'MultiHeadAttention':
    if grouped:
      raise turns.Refused('no grouped heads')
    domain, version = 'com.microsoft', 1
    attributes = {'num_heads': case['q_heads'],
                  'unidirectional': int(case['causal'])}
  else:
    domain, version = '', 23
    attributes = {'q_num_heads': case['q_heads'],
                  'kv_num_heads': case['kv_heads'],
                  'is_causal': int(case['causal'])}

  arrays = [turns.aligned(numpy.ascontiguousarray(
      x.transpose(1, 0, 2).reshape(1, x.shape[1], -1)))
            for x in turns.tensors(case, folder)]
  dtype = TYPES[case['dtype']]
  names = ('query', 'key', 'value')
  graph = helper.make_graph(
      [helper.make_node(operator, names, ['output'], domain=domain,
                        **attributes)],
      'attention',
      [helper.make_tensor_value_info(name, dtype, x.shape)
       for name, x in zip(names, arrays)],
      [helper.make_tensor_value_info('output', dtype, arrays[0].shape)])
  opsets = [helper.make_opsetid('', 23)]
  if domain:
    opsets.append(helper.make_opsetid(domain, version))
  model = helper.make_model(graph, opset_imports=opsets, ir_version=11)

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = 1
  options.inter_op_num_threads = 1
  try:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=['CPUExecutionProvider'])
  except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented as error:
    raise turns.Refused(str(error)) from error
  output = turns.aligned(numpy.zeros_like(arrays[0]))
  binding = session.io_binding()
  values = [onnxruntime.OrtValue.ortvalue_from_numpy(x) for x in arrays]
  for name, value in zip(names, values):
    binding.bind_ortvalue_input(name, value)
  bound = onnxruntime.OrtValue.ortvalue_from_numpy(output)
  binding.bind_ortvalue_output('output', bound)

  def call(_held=(arrays, output)):  # ONNX Runtime shares their memory
    session.run_with_iobinding(binding)

  def answer():
    rows = bound.numpy().reshape(case['q_len'], case['q_heads'],
                                 case['head_dim'])
    return rows.transpose(1, 0, 2)

  return call, answer


if __name__ == '__main__':
  onnxruntime.set_default_logger_severity(3)
  turns.serve(onnxruntime.__version__,
              lambda case, folder: prepare(sys.argv[1], case, folder))
