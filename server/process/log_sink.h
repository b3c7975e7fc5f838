// Writes the log to stderr in a thread of its own, so that no other thread
// waits if the reader of stderr is slow.
#ifndef ATTND_SERVER_PROCESS_LOG_SINK_H_
#define ATTND_SERVER_PROCESS_LOG_SINK_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>

#include "spdlog/sinks/base_sink.h"

namespace attnd::server {

// Returns how many lines all sinks of this process have dropped.
int64_t DroppedLogLines();

// A sink for spdlog that never blocks its callers. If nobody reads stderr, for
// example because it is a full pipe, only the sink's own thread waits. Up to
// 1 MiB of lines wait for that thread. The sink drops further lines, and logs
// how many it dropped as soon as stderr accepts lines again.
//
// The lines have the format that SetLogFormat has set before the sink exists.
// The sink cuts the text of each line after 1024 bytes and makes it Printable,
// so callers need not do that. LogFields has done it already. Thread-safe.
//
// Two alternatives do not work. spdlog's own asynchronous logger joins its
// threads when the process ends, and so waits forever if one is stuck in a
// write. A non-blocking stderr would be non-blocking for all processes that
// share it.
class LogSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  // Writes to `fd`, which the caller has to keep open until the process ends.
  explicit LogSink(int fd);
  // Calls Close.
  ~LogSink() override;

  // Waits until all lines so far are written, but at most half a second. After
  // that, the sink drops all further lines. If its thread is still stuck in a
  // write, it is left there until the process ends. A second call does nothing.
  void Close();

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override;
  // Waits until all lines so far are written, but at most half a second.
  void flush_() override;

 private:
  struct State;

  // Writes lines until the sink is closed. The sink's thread runs this.
  static void Write(State& state);

  // The thread shares this, because it may outlive the sink.
  const std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_PROCESS_LOG_SINK_H_
