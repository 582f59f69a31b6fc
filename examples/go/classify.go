// Command classify sends pictures to foldserve: ./build.sh && ./classify MODEL PICTURE ...
//
// FOLDSERVE_SERVER is the server's HOST:PORT.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"

	foldservev1 "example.com/classify/foldservev1"
)

func main() {
	server := os.Getenv("FOLDSERVE_SERVER")
	if server == "" {
		server = "127.0.0.1:8001"
	}
	if len(os.Args) < 3 {
		log.Fatal("usage: classify MODEL PICTURE ...")
	}
	request := &foldservev1.ClassifyRequest{ModelName: os.Args[1], TopK: 2}
	for _, path := range os.Args[2:] {
		picture, err := os.ReadFile(path)
		if err != nil {
			log.Fatal(err)
		}
		request.Images = append(request.Images, picture)
	}
	connection, err := grpc.Dial(server, grpc.WithInsecure())
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	answer, err := foldservev1.NewClassifierClient(connection).Classify(ctx, request)
	if err != nil {
		log.Fatal(err)
	}
	for index, result := range answer.Results {
		fmt.Print(os.Args[2+index])
		for _, label := range result.Labels {
			fmt.Printf("\t%s %.1f%%", label.Name, 100*label.Probability)
		}
		fmt.Println()
	}
}
