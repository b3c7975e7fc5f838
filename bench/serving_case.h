// The attention calls of the serving benchmark: their shapes and tensors, a
// call through the client library, and the same call on an engine in this
// process.
#ifndef ATTND_BENCH_SERVING_CASE_H_
#define ATTND_BENCH_SERVING_CASE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bench/records.h"
#include "client/attention_client.h"
#include "client/shared_region.h"
#include "core/attention_engine.h"

namespace attnd::bench {

struct ServingCase {
  std::string name;
  int64_t batch = 1;
  int64_t q_heads = 1;
  int64_t kv_heads = 1;
  int64_t q_len = 0;
  int64_t kv_len = 0;
  int64_t head_dim = 64;
  int max_clients = 16;  // more would only measure waiting
  bool shared_memory =
      false;  // the tensors are in a region shared with the server
  int64_t seen_keys =
      0;  // lengths hide the other keys; 0 means that all are seen
  bool streamed = false;  // in chunks, even if a message is large enough
  bool causal = false;    // row i sees keys 0 to i

  std::vector<int64_t> QueryShape() const {
    return {batch, q_heads, q_len, head_dim};
  }
  std::vector<int64_t> KeyShape() const {
    return {batch, kv_heads, kv_len, head_dim};
  }
  int64_t request_bytes()
      const;  // the bytes of the tensors, without the envelope
  int64_t reply_bytes() const;
};

// Returns small and large problems, tensors of 1, 4 and 16 MiB, few queries
// over many keys, and a stream.
std::vector<ServingCase> ServingCases();
// Returns the case with tensors of 16 MiB. A stream is compared with it.
ServingCase LargestInlineCase();

// Returns cases in shared memory. Five have keys and values of up to 256 MiB
// each, of which 64 keys are seen. There the overhead of a call is visible for
// each size of its tensors. The others are two of the cases above.
std::vector<ServingCase> SharedMemoryCases();

// Has the tensors of one case. They are in the memory of the caller, or in a
// region that is registered at `shm_socket` if the case uses shared memory.
// Calls can run at the same time if each has its own `slot`. They throw
// std::runtime_error if they fail.
class Workload {
 public:
  Workload(const ServingCase& shape, int slots,
           const std::string& shm_socket = "");

  const ServingCase& shape() const { return shape_; }

  void Call(const client::AttentionClient& client, int slot);
  void Run(AttentionEngine& engine, int slot);
  // Returns what the last call of `slot` has computed.
  std::span<const float> Output(int slot) const;
  using Done = client::AttentionClient::Done;
  void CallAsync(const client::AttentionClient& client, int slot, Done done);

 private:
  client::AttentionInputs Inputs() const;
  client::AttentionOutputs Outputs(int slot) const;
  client::AttentionOptions Options() const;
  client::Elements Allocate(int64_t count);

  ServingCase shape_;
  AttentionProblem problem_;
  std::optional<client::SharedRegion> region_;
  // The memory is shared with calls, so that they send it without a copy.
  using Memory = std::vector<std::unique_ptr<float[]>>;
  const std::shared_ptr<Memory> own_memory_ = std::make_shared<Memory>();
  client::Elements query_, key_, value_;
  // The index is the slot. Memory of the caller is not touched before the first
  // call of its slot.
  std::vector<client::Elements> outputs_;
};

// Returns clients of one server, each with its own connection. In a `streamed`
// case their limit for messages is small, so they stream.
std::vector<client::AttentionClient> Connect(const std::string& target,
                                             int count, bool streamed = false);

// Returns the keys that every record of a serving run has. A key is null if it
// does not apply. `case` is the name of the shape. A yardstick has the shape
// beside which it ran.
Json ServingRecord(const ServingCase& shape, const std::string& name,
                   const std::string& transport, int clients);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_SERVING_CASE_H_
