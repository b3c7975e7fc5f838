// Follows one call of a client from its beginning to its end, for the server's
// counters and its log.
#ifndef ATTND_SERVER_RPC_CALL_RECORD_H_
#define ATTND_SERVER_RPC_CALL_RECORD_H_

#include <atomic>
#include <chrono>
#include <cstdint>

#include "absl/status/status.h"
#include "core/attention_engine.h"
#include "grpcpp/server_context.h"
#include "server/load/load_meter.h"

namespace attnd::server {

// Counts a call, and writes a line for it to the log, at the level debug. The
// line never has the contents of tensors. Received and Sent are thread-safe,
// because a stream reads and writes at the same time.
class CallRecord {
 public:
  // The call begins now. `rpc` and `load` must outlive the record. `load` may
  // be null.
  CallRecord(ServiceMethod method, const grpc::CallbackServerContext& rpc,
             LoadMeter* load);
  CallRecord(const CallRecord&) = delete;
  CallRecord& operator=(const CallRecord&) = delete;
  // Writes the line to the log.
  ~CallRecord();

  // Adds the bytes of a message that the client sent, or that it gets.
  void Received(int64_t bytes) { received_bytes_ += bytes; }
  void Sent(int64_t bytes) { sent_bytes_ += bytes; }

  // Call it once, before gRPC gets the status. `stats` is how the answer was
  // computed, if the status is OK, and `shared` has the bytes in shared memory.
  void Finished(const absl::Status& status, const RunStats& stats,
                const CallBytes& shared = {});

 private:
  std::chrono::nanoseconds age() const {
    return std::chrono::steady_clock::now() - begin_;
  }

  const ServiceMethod method_;
  const grpc::CallbackServerContext& rpc_;
  LoadMeter* const load_;
  absl::StatusCode code_ = absl::StatusCode::kOk;
  std::atomic<int64_t> received_bytes_{0};
  std::atomic<int64_t> sent_bytes_{0};
  const std::chrono::steady_clock::time_point begin_ =
      std::chrono::steady_clock::now();
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_RPC_CALL_RECORD_H_
