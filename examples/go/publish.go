// Publishes one event: publish [TYPE] [JSON]
package main

import (
	"context"
	"log"
	"os"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func main() {
	eventType, body := "user.updated", `{"id": 42}`
	if len(os.Args) > 1 {
		eventType = os.Args[1]
	}
	if len(os.Args) > 2 {
		body = os.Args[2]
	}
	url := os.Getenv("UNSTALE_AMQP_URL")
	if url == "" {
		url = "amqp://guest:guest@127.0.0.1:5672/%2f"
	}

	connection, err := amqp.Dial(url)
	check(err)
	defer connection.Close()
	channel, err := connection.Channel()
	check(err)
	check(channel.Confirm(false))
	returns := channel.NotifyReturn(make(chan amqp.Return, 1))
	confirms := channel.NotifyPublish(make(chan amqp.Confirmation, 1)) // both channels close with the AMQP channel

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	check(channel.PublishWithContext(ctx, "events", eventType, true, false, amqp.Publishing{
		ContentType:  "application/json",
		DeliveryMode: amqp.Persistent,
		Body:         []byte(body),
	}))

	select {
	case confirmation := <-confirms:
		if !confirmation.Ack {
			log.Fatalf("%s was not taken by the broker", eventType)
		}
	case <-ctx.Done():
		log.Fatalf("%s was not confirmed: %v", eventType, ctx.Err())
	}
	select { // a return comes before its confirm
	case returned := <-returns:
		log.Fatalf("%s was returned: %s", eventType, returned.ReplyText)
	default:
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
