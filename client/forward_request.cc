#include "client/forward_request.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/error_details.h"
#include "client/request_encoder.h"
#include "wire/method_names.h"
#include "wire/outgoing_message.h"

namespace attnd::client {
namespace {

absl::Status CheckSize(const Elements& target, const char* name,
                       const std::vector<int64_t>& shape) {
  const auto count = ElementCount(shape);
  const auto capacity =
      static_cast<int64_t>(target.bytes().size()) / SizeOf(target.type());
  if (!target.place() || !count || *count == capacity) return absl::OkStatus();
  return FieldError(name, absl::StrCat("memory for ", *count, " elements"),
                    absl::StrCat("memory for ", capacity));
}

}  // namespace

const char* NameOf(Method method) {
  switch (method) {
    case Method::kAttention:
      return method::kAttention;
    case Method::kSelfAttention:
      return method::kSelfAttention;
    case Method::kCrossAttention:
      return method::kCrossAttention;
  }
  return "";
}

v1::AttentionOptions OptionsFrom(const AttentionOutputs& outputs) {
  v1::AttentionOptions options;
  options.set_return_lse(outputs.lse.has_value());
  options.set_output_dtype(EncodeType(outputs.output.type()));
  if (outputs.output.place()) {
    EncodePlace(*outputs.output.place(), options.mutable_output_region());
  }
  if (outputs.lse && outputs.lse->place()) {
    EncodePlace(*outputs.lse->place(), options.mutable_lse_region());
  }
  return options;
}

OutgoingMessage EncodeForward(const ForwardCall& call) {
  size_t text_bytes = 256;  // enough for most calls, without their elements
  for (const auto& tensor :
       {&call.inputs.query, &call.inputs.key, &call.inputs.value}) {
    const size_t data_bytes = tensor->data.bytes().size();
    if (data_bytes < kSmallestPieceBytes) text_bytes += data_bytes;
  }
  OutgoingMessage message;
  message.Reserve(text_bytes);
  switch (call.method) {
    case Method::kAttention:
      AddTensor(v1::AttentionRequest::kQueryFieldNumber, call.inputs.query,
                &message);
      AddTensor(v1::AttentionRequest::kKeyFieldNumber, call.inputs.key,
                &message);
      AddTensor(v1::AttentionRequest::kValueFieldNumber, call.inputs.value,
                &message);
      AddOptions(v1::AttentionRequest::kOptionsFieldNumber, call.options,
                 OptionsFrom(call.outputs), &message);
      break;
    case Method::kSelfAttention:
      AddTensor(v1::SelfAttentionRequest::kSequenceFieldNumber,
                call.inputs.query, &message);
      AddOptions(v1::SelfAttentionRequest::kOptionsFieldNumber, call.options,
                 OptionsFrom(call.outputs), &message);
      break;
    case Method::kCrossAttention:
      AddTensor(v1::CrossAttentionRequest::kQueriesFieldNumber,
                call.inputs.query, &message);
      AddTensor(v1::CrossAttentionRequest::kKvSequenceFieldNumber,
                call.inputs.key, &message);
      AddOptions(v1::CrossAttentionRequest::kOptionsFieldNumber, call.options,
                 OptionsFrom(call.outputs), &message);
      break;
  }
  return message;
}

absl::Status CheckOutputSizes(const ForwardCall& call) {
  const std::vector<int64_t>& query = call.inputs.query.shape;
  absl::Status status = CheckSize(call.outputs.output, "output",
                                  OutputShape(query, call.inputs.value.shape));
  if (call.outputs.lse) {
    status.Update(CheckSize(*call.outputs.lse, "lse",
                            LseShape(query, call.options.layout)));
  }
  return status;
}

bool SharesMemory(const ForwardCall& call) {
  const AttentionInputs& in = call.inputs;
  const auto shared = [](const auto& elements) {
    return elements.place().has_value();
  };
  const auto shared_option = [&](const std::optional<ConstTensor>& tensor) {
    return tensor && shared(tensor->data);
  };
  return shared(in.query.data) || shared(in.key.data) ||
         shared(in.value.data) || shared_option(call.options.bias) ||
         shared_option(call.options.mask) || shared(call.outputs.output) ||
         (call.outputs.lse && shared(*call.outputs.lse));
}

}  // namespace attnd::client
