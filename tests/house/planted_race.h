// Connects planted_race.cc, which is instrumented by the sanitizer, and
// planted_race_grpc.cc, which is not. The server is divided in the same way.
#ifndef ATTND_TESTS_HOUSE_PLANTED_RACE_H_
#define ATTND_TESTS_HOUSE_PLANTED_RACE_H_

namespace attnd::house {

// Runs once per call, in a callback thread of gRPC.
void PlantedHandler();

// Makes two calls at the same time to a server in this process, and each of
// them runs PlantedHandler. Returns false if a call failed.
bool CallTwiceAtOnce();

}  // namespace attnd::house

#endif  // ATTND_TESTS_HOUSE_PLANTED_RACE_H_
