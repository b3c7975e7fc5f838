#include "server/rpc/call_record.h"

#include "spdlog/spdlog.h"

namespace attnd::server {

CallRecord::CallRecord(ServiceMethod method,
                       const grpc::CallbackServerContext& rpc, LoadMeter* load)
    : method_(method), rpc_(rpc), load_(load) {}

void CallRecord::Finished(const absl::Status& status, const RunStats& stats,
                          const CallBytes& shared) {
  code_ = status.code();
  if (load_ == nullptr) return;
  CallBytes bytes = shared;
  bytes.received = received_bytes_.load();
  bytes.sent = sent_bytes_.load();
  load_->Ended(method_, status, age(), stats, bytes);
}

CallRecord::~CallRecord() {
  if (!spdlog::should_log(spdlog::level::debug)) return;
  spdlog::debug(
      "{} {} {} us: {} bytes from {}, {} bytes back", MethodName(method_),
      absl::StatusCodeToString(code_),
      std::chrono::duration_cast<std::chrono::microseconds>(age()).count(),
      received_bytes_.load(), rpc_.peer(), sent_bytes_.load());
}

}  // namespace attnd::server
