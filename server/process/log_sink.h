// Writes the log to stderr without making any other thread wait for stderr.
#ifndef ATTND_SERVER_PROCESS_LOG_SINK_H_
#define ATTND_SERVER_PROCESS_LOG_SINK_H_

#include <memory>
#include <mutex>
#include <thread>

#include "spdlog/sinks/base_sink.h"

namespace attnd::server {

// A sink for spdlog that never blocks the caller. A stderr that nobody reads,
// such as a full pipe, blocks only a thread of the sink. At most 1 MiB of lines
// waits for it. Lines beyond that are dropped, and a line says how many were
// dropped as soon as stderr accepts lines again.
//
// The text of each line is cut after 1024 bytes and made Printable here, so
// callers need not do that. Thread-safe.
//
// Two alternatives do not work. spdlog's own asynchronous logger joins its
// threads when the process ends, and so waits forever if one is stuck in a
// write. Making stderr non-blocking would change it for all processes that
// share it.
class LogSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  // Writes to `fd`, which the caller keeps open.
  explicit LogSink(int fd);
  // Calls Close.
  ~LogSink() override;

  // Waits until all lines so far are written, but at most half a second. Then
  // it drops all later lines. If the thread is stuck in a write, it goes on
  // until the process ends. A second call does nothing.
  void Close();

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override;
  // Waits as Close does.
  void flush_() override;

 private:
  struct State;

  static void Write(State& state);

  // Shared with the thread, which may outlive the sink.
  const std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_PROCESS_LOG_SINK_H_
