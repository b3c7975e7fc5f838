// A bare unary echo through gRPC with its default settings (but for the size
// limit), raw and through protobuf: what any service of that size pays.
// Its .cc is the only part of the benchmarks that knows gRPC.
#ifndef ATTND_BENCH_GRPC_ECHO_H_
#define ATTND_BENCH_GRPC_ECHO_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace attnd::bench {

// Serves until destroyed. Throws std::runtime_error where it cannot listen.
class EchoServer {
 public:
  // "host:port", where port 0 picks a free one, or "unix:PATH".
  explicit EchoServer(const std::vector<std::string>& listen);
  ~EchoServer();

  // As clients spell them, in the order of `listen`.
  const std::vector<std::string>& addresses() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// One connection. Calls throw std::runtime_error where they fail.
class EchoClient {
 public:
  EchoClient(const std::string& target, int64_t request_bytes,
             int64_t reply_bytes);
  ~EchoClient();

  // Sends the request's bytes, gets the reply's, touches neither.
  void CallRaw();
  void CallProtobuf();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace attnd::bench

#endif  // ATTND_BENCH_GRPC_ECHO_H_
