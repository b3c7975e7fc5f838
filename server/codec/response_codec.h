// Encodes results as messages of attention.proto. Large tensors are not copied:
// they are sent from the memory to which the kernel wrote them.
#ifndef ATTND_SERVER_CODEC_RESPONSE_CODEC_H_
#define ATTND_SERVER_CODEC_RESPONSE_CODEC_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "attnd/v1/attention.pb.h"
#include "core/attention_engine.h"
#include "server/codec/request_codec.h"
#include "wire/outgoing_message.h"

namespace attnd::server {

// Converts `stats` to a message.
v1::ExecutionStats EncodeStats(const RunStats& stats);

// A tensor of an answer. Does not own its data.
struct ResponseTensor {
  int field_number = 0;  // in the message of the answer
  DataType dtype = DataType::kF32;
  std::vector<int64_t> shape = {};
  std::span<const std::byte> data = {};
  // Set if the data are in shared memory, at this place.
  std::optional<v1::SharedMemory> place = {};
};

// The answer of an attention method, before it is encoded.
struct AttentionAnswer {
  std::vector<ResponseTensor> tensors;
  int stats_field_number = 0;
  RunStats stats = {};
};

// Encode the three kinds of messages in the answer of AttentionStream. The
// field numbers of tensors are those of AttentionResponse. EncodeChunk encodes
// `size` bytes of the tensor, from byte `offset` on. Unless these bytes are
// few, they are not copied, and the message keeps `owner` alive.
OutgoingMessage EncodeStreamHeader(const std::vector<ResponseTensor>& tensors);
OutgoingMessage EncodeChunk(const ResponseTensor& tensor, size_t offset,
                            size_t size, std::shared_ptr<const void> owner);
OutgoingMessage EncodeStreamStats(const RunStats& stats);

// Encodes an answer. The message keeps `owner`, the owner of the tensors' data,
// alive until it is sent. `kind` says what the message contains: - kData: the
// bytes of the tensors. Those of large tensors are not copied. - kValues: a
// copy of the elements as numbers. All tensors must be F32. - kSharedMemory:
// the places of the tensors.
OutgoingMessage EncodeAnswer(const AttentionAnswer& answer, PayloadKind kind,
                             std::shared_ptr<const void> owner);

}  // namespace attnd::server

#endif  // ATTND_SERVER_CODEC_RESPONSE_CODEC_H_
